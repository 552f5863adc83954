"""Keeps a Python process on this machine; Python imports it at its start where its folder is on the path.

A refused attempt is told on standard error, for code that takes a refusal in its stride.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Any


def _stays_here(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if not _stays_here(host):
        sys.stderr.write(f"reached for the network: {event} {host!r}\n")
        raise ConnectionRefusedError(f"tests have no network: {host!r}")


sys.addaudithook(_refuse)
