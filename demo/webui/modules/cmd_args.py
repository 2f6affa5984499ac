"""The command line of the host; extensions add to it in their preload.py."""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser(prog="python -m demo", add_help=False)
parser.add_argument("--api-auth", type=str, default=None, help="user:password[,user:password] for the API")
parser.add_argument("--lowvram", action="store_true", help="accepted and without effect here")
parser.add_argument("--medvram", action="store_true", help="accepted and without effect here")
parser.add_argument("--models-dir", type=str, default=None, help="where extensions keep what belongs to checkpoints")
parser.add_argument("--show-steps", action="store_true", help="a progress bar in the console while sampling")
