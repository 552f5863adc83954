"""The terminal's face."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run `moss-voice`."""
    from moss_voice.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign gets a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()
