"""The log behind a moss-voice server, by its REST API (docs/server-api.md).

What is promised: every call may be repeated without harm, so one whose answer was lost is repeated, for a
while; what comes back is decoded by `log`, or is an error; an answer that no moss-voice server gave is not
taken for one. Nothing is opened before the first call. Each event loop has connections of its own, which
end with it. The key is sent to this one address: a redirect is an error.
"""

from __future__ import annotations

from moss_voice.cloud.http.calls import Timeouts
from moss_voice.cloud.http.events import EventStream
from moss_voice.cloud.http.resources import HttpLog

__all__ = ["EventStream", "HttpLog", "Timeouts"]
