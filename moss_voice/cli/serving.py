"""The server, and the keys of its projects: commands that work on a store themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from moss_voice.cli.shell import FAILED, Shell, plain
from moss_voice.cloud.keys import KeyInfo, ProjectKeys
from moss_voice.cloud.names import decode_name
from moss_voice.cloud.objects import Objects, open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import IndexNotFoundError, InvalidArgumentError
from moss_voice.server.labels import project_hash

__all__ = ["ServeOptions", "create", "list_keys", "revoke", "rotate", "run_server"]

STORE = "MOSS_VOICE_STORE"


@dataclass(frozen=True)
class ServeOptions:
    """What `moss-voice serve` was given."""

    host: str
    port: int
    metrics_port: int | None = None
    log_level: str = "info"
    trusted_proxies: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    dashboard: bool = True
    limits: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None


def _objects(store: str | None) -> Objects:
    where = store or os.environ.get(STORE) or None
    if where is not None and where.partition("://")[0] in {"http", "https"}:
        raise InvalidArgumentError("store: expected a directory or an object store, got a server")
    return open_objects(where)


def run_server(shell: Shell, store: str | None, options: ServeOptions) -> None:
    """Serve until somebody ends it."""
    try:
        from moss_voice.server import run
        from moss_voice.server.settings import Limits, Settings
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {
            "fastapi",
            "uvicorn",
            "prometheus_client",
            "starlette",
        }:
            raise
        raise InvalidArgumentError(
            f'the server needs the package {error.name}: pip install "moss-voice[server]"'
        ) from None
    if (options.tls_cert is None) != (options.tls_key is None):
        raise InvalidArgumentError("expected --tls-cert and --tls-key together")
    objects = _objects(store)
    try:
        settings = Settings(limits=Limits(**options.limits or {}), **options.settings or {})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise InvalidArgumentError(f"{first['loc'][-1]}: {first['msg']}") from None
    listener = run.listen(options.host, options.port)
    host, port = listener.getsockname()[:2]
    scheme = "https" if options.tls_cert is not None else "http"
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def ready() -> None:
        if shell.json:
            shell.emit({"url": url, "store": objects.name}, indent=None)
        else:
            dashboard = f"dashboard: {url}/, " if options.dashboard else ""
            typer.echo(f"moss-voice serves {objects.name} at {url} ({dashboard}API: {url}/docs)")

    run.serve(
        ObjectLog(objects),
        settings,
        listener=listener,
        on_ready=ready,
        metrics_port=options.metrics_port,
        log_level=options.log_level,
        trusted_proxies=options.trusted_proxies,
        certificate=(
            (str(options.tls_cert), str(options.tls_key)) if options.tls_cert is not None else None
        ),
        dashboard=options.dashboard,
    )


# --- keys ------------------------------------------------------------------------------------------

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """Return a duration such as 90, 90s, 15m, 12h or 30d in seconds.

    Raises:
        ValueError: If it is none, or not above 0.
    """
    unit = _UNITS.get(text[-1:], 0)
    number = float(text[:-1] if unit else text) * (unit or 1)
    if not 0 < number < 100 * 366 * 86400:
        raise ValueError("expected a duration above 0")
    return number


async def create(
    shell: Shell, project: str, *, store: str | None, read_only: bool, expires_in_s: float | None
) -> None:
    """Make a key, and show it once."""
    made = await ProjectKeys(_objects(store)).create(
        project, read_only=read_only, expires_in_s=expires_in_s
    )
    if shell.json:
        shell.emit({**_told(project, made.info), "key": made.key})
        return
    _show_key(shell, project, made.key, made.info)


def _show_key(shell: Shell, project: str, key: str, info: KeyInfo) -> None:
    kind = "reads only" if info.read_only else "reads and writes"
    until = f", until {_when(info.expires_at)}" if info.expires_at is not None else ""
    shell.err.print(Text(f"Key {info.id} of project {plain(project)}: {kind}{until}."))
    shell.err.print(Text("It is shown this once; what is stored cannot be turned back into it."))
    typer.echo(key)


async def rotate(
    shell: Shell,
    project: str,
    *,
    store: str | None,
    read_only: bool,
    expires_in_s: float | None,
    end_old_in_s: float | None,
) -> None:
    """Make a new key beside those that there are, which go on until they are revoked or end."""
    keys = ProjectKeys(_objects(store))
    old = [key for key in await keys.list_keys(project) if key.read_only == read_only]
    if not old:
        raise IndexNotFoundError(
            f"project {project!r} has no {'read-only ' if read_only else ''}key in {_objects(store).name};"
            " `moss-voice project create` makes one"
        )
    made = await keys.create(project, read_only=read_only, expires_in_s=expires_in_s)
    left: list[KeyInfo] = []
    for key in old:
        ends = None
        if end_old_in_s is not None and key.id != "chosen":
            ends = await keys.end(project, key.id, in_s=end_old_in_s)
        left.append(ends or key)
    if shell.json:
        shell.emit(
            {
                **_told(project, made.info),
                "key": made.key,
                "old": [_told(project, key) for key in left],
            }
        )
        return
    _show_key(shell, project, made.key, made.info)
    for key in left:
        until = (
            f"ends {_when(key.expires_at)}"
            if key.expires_at is not None
            else f"goes on until: moss-voice project revoke {plain(project)} {key.id}"
        )
        shell.err.print(Text(f"Old key {key.id} {until}"), soft_wrap=True)


async def revoke(shell: Shell, project: str, key_ids: Sequence[str], *, store: str | None) -> None:
    """End keys for good; servers notice within seconds."""
    keys = ProjectKeys(_objects(store))
    gone = {key_id: await keys.revoke(project, key_id) for key_id in key_ids}
    if shell.json:
        shell.emit({"project": project, "revoked": [key_id for key_id in gone if gone[key_id]]})
    else:
        for key_id, there in gone.items():
            shell.out.print(
                Text(f"{key_id}: {'revoked' if there else 'there is no such key (any more)'}")
            )
    if not all(gone.values()):
        raise typer.Exit(FAILED)


async def list_keys(shell: Shell, project: str | None, *, store: str | None) -> None:
    """Tell about the keys of one project, or of all."""
    objects = _objects(store)
    keys = ProjectKeys(objects)
    names = (
        [project] if project is not None else [decode_name(name) for name in await keys.projects()]
    )
    found = [(name, key) for name in names for key in await _keys_of(keys, name)]
    if shell.json:
        shell.emit([_told(name, key) for name, key in found])
        return
    if not found:
        shell.out.print(Text(f"No keys in {plain(objects.name)}: moss-voice project create NAME"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("project", overflow="fold")
    for title in ("in logs", "key", "may", "ends"):
        table.add_column(title, no_wrap=True)
    for name, key in found:
        table.add_row(
            Text(plain(name)),
            project_hash(name),
            key.id,
            "read" if key.read_only else "read, write",
            _when(key.expires_at),
        )
    shell.out.print(table)


async def _keys_of(keys: ProjectKeys, name: str) -> list[KeyInfo]:
    # A name that was cut is told as it is stored, and cannot be looked up by that.
    return [] if "~" in name else await keys.list_keys(name)


def _told(project: str, key: KeyInfo) -> dict[str, Any]:
    return {
        "project": project,
        "in_logs": project_hash(project),
        "key_id": key.id,
        "read_only": key.read_only,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }


def _when(at: datetime | None) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M") if at is not None else "-"
