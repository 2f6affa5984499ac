"""Command line options, read by the host before it starts."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deepcache-disable", action="store_true", help="switch the DeepCache extension off")
    parser.add_argument(
        "--deepcache-log-level",
        type=str,
        default="WARNING",
        help="how much DeepCache says in the console: DEBUG, INFO (a line for each pass), WARNING, ERROR",
    )
