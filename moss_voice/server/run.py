"""A server as a process: it listens, says where, and ends when it is asked to, without cutting anybody off."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final

import uvicorn
from prometheus_client import start_http_server

from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import InvalidArgumentError
from moss_voice.server.app import create_app
from moss_voice.server.observe import JsonLines
from moss_voice.server.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Server", "listen", "serve"]

logger = logging.getLogger(__name__)

# How long a connection may be open without a whole request's head.
_SILENT_S: Final = 30.0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes one that is free.

    Raises:
        InvalidArgumentError: If the address is taken, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # With its protocol named: asyncio sends at once only on sockets that say that they are TCP.
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it would let two listen on one port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise _cannot_listen(host, port, error) from None
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> InvalidArgumentError:
    reason = error.strerror or type(error).__name__
    return InvalidArgumentError(f"cannot listen on {host} port {port}: {reason}; choose another")


def serve(
    log: ObjectLog,
    settings: Settings,
    *,
    listener: socket.socket,
    on_ready: Callable[[], None],
    metrics_port: int | None = None,
    log_level: str = "info",
    trusted_proxies: str = "",
    certificate: tuple[str, str] | None = None,
    dashboard: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way, and return.

    Args:
        log: Where everything is kept.
        settings: What is taken, and how long is waited.
        listener: A listening socket.
        on_ready: Called once requests are answered.
        metrics_port: Serves `/metrics` there, on the same host, and no longer beside the API.
        log_level: Of our lines on stderr.
        trusted_proxies: Addresses whose `X-Forwarded-For` is believed.
        certificate: Files of a certificate chain and its key, for TLS.
        dashboard: False for the API alone.
    """
    _log_json(sys.stderr, log_level)
    app = create_app(log, settings, with_metrics=metrics_port is None, with_dashboard=dashboard)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        # Longer than balancers keep a connection that they may use again any moment.
        timeout_keep_alive=75,
        server_header=False,
        ws="none",
        lifespan="on",
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies or None,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_s),
        ssl_certfile=certificate[0] if certificate else None,
        ssl_keyfile=certificate[1] if certificate else None,
    )
    host = listener.getsockname()[0]
    if certificate is None and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        logger.warning("keys and calls travel unencrypted: put TLS in front, or give --tls-cert")
    beside = None
    if metrics_port is not None:
        registry = app.state.moss_voice.metrics.registry
        try:
            beside, _ = start_http_server(metrics_port, host, registry=registry)
        except OSError as error:
            raise _cannot_listen(host, metrics_port, error) from None
    try:
        Server(config, app, on_ready).run(sockets=[listener])
    finally:
        if beside is not None:
            beside.shutdown()
            beside.server_close()


class Server(uvicorn.Server):
    """Uvicorn's, that ends event streams first and itself with an exit code of 0."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_ready: Callable[[], None]) -> None:
        """Take uvicorn's configuration, the application, and whom to tell that it answers."""
        super().__init__(config)
        self._hub = app.state.moss_voice.hub
        self._on_ready = on_ready
        self._silent: dict[object, float] = {}

    async def on_tick(self, counter: int) -> bool:
        """Look around ten times a second; tells whether to end."""
        if counter % 50 == 0:
            self._drop_silent()
        return await super().on_tick(counter)

    def _drop_silent(self) -> None:
        """Close connections on which no request came for long: uvicorn keeps them for ever."""
        now = asyncio.get_running_loop().time()
        silent = [c for c in self.server_state.connections if getattr(c, "cycle", c) is None]
        self._silent = {connection: self._silent.get(connection, now) for connection in silent}
        for connection in silent:
            if now - self._silent[connection] > _SILENT_S:
                connection.transport.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams, then wait for what is under way."""
        # Uvicorn waits for open answers, and a stream has no end of its own.
        self._hub.close()
        await super().shutdown(sockets=sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals; uvicorn's own would raise them anew at the end, and die of them."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _log_json(stream: IO[str], level: str) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("moss_voice").setLevel(level.upper())
