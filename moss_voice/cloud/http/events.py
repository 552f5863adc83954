"""Server-sent events, of which the server tells new versions: bytes in, events out."""

from __future__ import annotations

import re
from typing import Final

from moss_voice.errors import CloudUnavailableError

__all__ = ["EventStream"]

# More is no event of ours.
_MAX_EVENT_BYTES: Final = 1 << 16


class EventStream:
    """Bytes in, server-sent events out, wherever the parts are cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, part: bytes) -> list[tuple[str, str]]:
        """Return the events that are complete now: their types and data. Comments are passed over.

        Raises:
            CloudUnavailableError: If a line goes on for longer than any of ours.
        """
        text = self._rest + part
        # A carriage return at the end may be half of a line's end.
        held = text[-1:] == b"\r"
        lines = re.split(rb"\r\n|\n|\r", text[:-1] if held else text)
        self._rest = lines.pop() + (b"\r" if held else b"")
        events = []
        for raw in lines:
            line = raw.decode("utf-8", "replace").removeprefix("\ufeff")
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            self._size += len(raw)
            if name == "event":
                self._event = value
            elif name == "data":
                self._data.append(value)
            elif not line:
                if self._data:
                    events.append((self._event or "message", "\n".join(self._data)))
                self._event, self._data, self._size = "", [], 0
        if len(self._rest) + self._size > _MAX_EVENT_BYTES:
            raise CloudUnavailableError("the server's events are longer than a moss-voice server's")
        return events
