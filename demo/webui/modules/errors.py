"""Errors of extensions are shown and survived."""

from __future__ import annotations

import sys
import traceback


def report(message: str, *, exc_info: bool = False) -> None:
    """Print `message`, with the current traceback if wanted."""
    for line in message.splitlines():
        print("***", line, file=sys.stderr)
    if exc_info:
        print(traceback.format_exc().rstrip(), "---", sep="\n", file=sys.stderr)


def display(e: Exception, task: str, *, full_traceback: bool = False) -> None:
    """Print exception `e` that occurred during `task`."""
    print(f"{task or 'error'}: {type(e).__name__}", file=sys.stderr)
    limit = None if full_traceback else -5
    print("".join(traceback.format_exception(type(e), e, e.__traceback__, limit=limit)), file=sys.stderr)


def print_error_explanation(message: str) -> None:
    """Print `message` in a frame."""
    print("=" * 80, message, "=" * 80, sep="\n", file=sys.stderr)
