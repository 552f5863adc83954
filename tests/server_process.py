"""A real `moss-voice serve` in a process of its own on loopback.

    with serve(tmp_path / "store") as server:
        project, key = server.project()
        httpx.get(f"{server.url}/v1/projects/{project}", headers=server.bearer(key))

Run as a script, this file is that process: the command line's own entry, which also ends when its standard
input does, so it never outlives the tests, however they end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moss_voice.cloud.store import ObjectLog
    from moss_voice.server.settings import Settings
    from moss_voice.server.state import State

_ROOT = Path(__file__).resolve().parent.parent


class Server:
    """A server that is started, killed and started again on its port."""

    def __init__(
        self, store: str | Path, options: tuple[str, ...], environ: Mapping[str, str] | None
    ) -> None:
        self.store = str(store)
        self.url = ""
        self._options = options
        self._environ = {**os.environ, **(environ or {})}
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` does
        self._projects = 0

    def __repr__(self) -> str:
        return f"<Server {self.url} over {self.store}>"

    # --- life --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            *(sys.executable, __file__, "serve", "--json"),
            *("--store", self.store, "--port", str(self._port)),
            *self._options,
        ]
        self._process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start:\n{self.log()}")
        self.url = json.loads(line)["url"]
        self._port = int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """End it as a power failure would."""
        self._end(signal.SIGKILL, wait_s=10)

    def terminate(self, *, wait_s: float = 60) -> int:
        """Ask it to end; returns its exit code."""
        return self._end(signal.SIGTERM, wait_s=wait_s)

    def restart(self) -> None:
        """Start it again on the same port."""
        if self._process is not None:
            self.kill()
        self.start()

    def _end(self, number: signal.Signals, *, wait_s: float) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def close(self) -> None:
        """End it if it runs."""
        if self._process is not None:
            self.kill()
        self._log.close()

    # --- what it says ------------------------------------------------------------------------------

    def log(self) -> str:
        """Return all that it wrote to its standard error so far."""
        return os.pread(self._log.fileno(), 1 << 26, 0).decode()

    def log_lines(self) -> list[dict[str, Any]]:
        """Return its log, parsed."""
        return [json.loads(line) for line in self.log().splitlines()]

    # --- projects ----------------------------------------------------------------------------------

    def project(self, name: str | None = None, **options: Any) -> tuple[str, str]:
        """Make a project, or a key more of it, straight in the store; returns its id and the key.

        Args:
            name: Of the project; a new one where None.
            options: Of `ProjectKeys.create`.
        """
        from moss_voice.cloud.keys import ProjectKeys
        from moss_voice.cloud.objects import open_objects

        if name is None:
            self._projects += 1
            name = f"project-{self._projects}"
        made = asyncio.run(ProjectKeys(open_objects(self.store)).create(name, **options))
        return name, made.key

    @staticmethod
    def bearer(key: str) -> dict[str, str]:
        """Return the headers of a request with a key."""
        return {"Authorization": f"Bearer {key}"}


@contextmanager
def serve(
    store: str | Path, *options: str, environ: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server over a store, with options of `moss-voice serve`; kill it at the end."""
    server = Server(store, options, environ)
    try:
        server.start()
        yield server
    finally:
        server.close()


@contextmanager
def serve_here(log: ObjectLog, settings: Settings) -> Iterator[tuple[str, State]]:
    """Serve in a thread of this process, with settings that no option changes; gives its parts too.

    For what a test must look into; its event loop is the thread's own.
    """
    import uvicorn

    from moss_voice.server.app import create_app
    from moss_voice.server.run import listen

    app = create_app(log, settings)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=5
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.moss_voice
    finally:
        app.state.moss_voice.hub.closing = True
        server.should_exit = True
        thread.join()


def _main() -> None:
    def watch() -> None:
        while os.read(0, 1 << 10):  # not through sys.stdin, which the interpreter locks as it ends
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    from moss_voice.cli import main

    main()


if __name__ == "__main__":
    sys.path.insert(0, str(_ROOT))
    _main()
