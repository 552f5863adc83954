"""A real S3 over HTTP, in a process of its own on loopback: moto's, made as atomic as S3 is.

    with s3_server() as server:
        os.environ.update(server.environ())
        store = obstore.store.from_url(f"s3://{server.bucket}/prefix")

Run as a script, this file is that process; it ends when its standard input does, so it never
outlives the tests, however they end.
"""

from __future__ import annotations

import http.client
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BUCKET = "moss-voice-tests"


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    endpoint: str
    bucket: str = BUCKET

    def environ(self) -> dict[str, str]:
        """Return the variables by which obstore finds the server. It reads no others of its own.

        Whoever sets them should unset the user's other `AWS_` variables: obstore reads those too.
        """
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start a server with an empty bucket; stop it, and forget what it stores, at the end."""
    command = [sys.executable, "-I", __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            if not port:
                raise RuntimeError("the S3 server did not start: see its standard error")
            server = S3Server(f"http://127.0.0.1:{int(port)}")
            _make_bucket(server)
            yield server
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _make_bucket(server: S3Server) -> None:
    address = urlsplit(server.endpoint).netloc
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("PUT", f"/{server.bucket}")
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise RuntimeError(f"the S3 server made no bucket: {answer.status} {answer.read()!r}")


def _atomic(app: WSGIApplication, afterwards: Callable[[], None]) -> WSGIApplication:
    """Let one request at a time into the application, and only one that has come whole.

    moto looks whether a key is there and stores it in two steps. Connections still have a thread
    each, since a client may hold one open that it sends nothing on.

    Args:
        app: moto's S3.
        afterwards: Called after each request, before the next one.
    """
    lock = threading.Lock()

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        if len(body) < length:  # the client is gone: S3 would store nothing
            start_response("400 Bad Request", [("Content-Length", "0")])
            return []
        environ["wsgi.input"] = io.BytesIO(body)
        with lock:
            answer = app(environ, start_response)
            try:
                return [b"".join(answer)]
            finally:
                if hasattr(answer, "close"):
                    answer.close()
                afterwards()

    return call


def _serve() -> None:
    """Print the port, then serve until standard input ends."""
    from moto.core.model_instances import reset_model_data
    from moto.moto_server.werkzeug_app import create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    # moto keeps every object that it ever made, for a reset, which a process of its own needs not.
    app = _atomic(create_backend_app("s3"), reset_model_data)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    _serve()
