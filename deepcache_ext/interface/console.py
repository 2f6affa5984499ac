"""What is said in the host's console."""

from __future__ import annotations

import logging

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def set_up(level: str) -> None:
    """Give the extension's logger its level and a handler of its own; calling it again only sets the level.

    Hosts leave logging unconfigured unless they are asked, and then nothing below WARNING would be seen.
    """
    logger = logging.getLogger("deepcache")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[DeepCache] %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    known = level.upper() in LEVELS
    logger.setLevel(level.upper() if known else "WARNING")
    if not known:
        logger.warning("--deepcache-log-level = %r is not allowed: one of %s", level, ", ".join(LEVELS))
