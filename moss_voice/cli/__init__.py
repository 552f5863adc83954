"""The terminal's face."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run `moss-voice`."""
    from moss_voice.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign gets a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app()
    finally:
        _let_go()


def _let_go() -> None:
    """Write out what is left; a reader that has gone, as `head` does, is no fault."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more as it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
