"""`moss-voice doctor`: does everything work here, and how fast.

The law: it leaves nothing behind, and each check stands for itself: one that fails does not hide the
others.
"""

from __future__ import annotations

import asyncio
import platform
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
import typer
from rich.text import Text

import moss_voice
from moss_voice import demo
from moss_voice.call.journal import Header, Journal, Put
from moss_voice.cli.play import Tally, play, show_wrapped
from moss_voice.cli.shell import FAILED, Shell, where
from moss_voice.client import MossClient
from moss_voice.cloud.cloud import Cloud, open_cloud
from moss_voice.cloud.log import Commit
from moss_voice.cloud.names import encode_name
from moss_voice.cloud.objects import Store
from moss_voice.cloud.store import ObjectLog
from moss_voice.embedding import Embedder
from moss_voice.errors import CloudUnavailableError, MossError, PermissionDeniedError
from moss_voice.models import DEFAULT_MODEL, load_embedder
from moss_voice.text import ANALYZER
from moss_voice.workers import in_worker

__all__ = ["run_doctor"]

_PACKAGES = ("numpy", "onnxruntime", "tokenizers", "hnswlib", "obstore", "pydantic")
_SYNCS = 7
_EMBEDS = 40
# Sixteen tokens of all-MiniLM-L6-v2 with the two that frame a text; a number keeps each one new, since
# a text seen before is not embedded again.
_TURN = "my number {} is cut off again since i moved house, why"
_DEADLINE_MS = 50.0


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        status: `ok`; `slow`: it works, but too late for a live call; or `failed`.
        told: For people.
        todo: What to do where it is not ok.
        values: For machines.
    """

    name: str
    status: str
    told: str
    todo: str = ""
    values: dict[str, Any] = field(default_factory=dict)


async def run_doctor(shell: Shell) -> None:
    """Run every check and tell what it found; exit code 1 where one failed."""
    checks = [_versions()]
    for name, run, todo in (
        ("model", _model, "reinstall moss-voice: its model's files are missing or damaged"),
        (
            "cloud",
            lambda: _cloud(shell),
            "check --cloud or MOSS_VOICE_CLOUD and who may write there",
        ),
        ("journal", lambda: _journal(shell), "check --journal and who may write there"),
        ("speed", _speed, "see the failed checks above"),
        ("memory", _memory, ""),
    ):
        checks.append(await _guarded(name, run, todo))
    failed = [check for check in checks if check.status == "failed"]
    if shell.json:
        shell.emit({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _show(shell, checks)
    if failed:
        raise typer.Exit(FAILED)


async def _guarded(name: str, run: Callable[[], Awaitable[Check]], todo: str) -> Check:
    try:
        return await run()
    except MossError as error:
        return Check(name, "failed", str(error), todo, {"code": error.code})
    except Exception as error:  # noqa: BLE001 - what breaks is what a doctor looks for
        return Check(name, "failed", f"{type(error).__name__}: {error}", todo)


def _versions() -> Check:
    found = {"python": platform.python_version(), "moss_voice": moss_voice.__version__}
    missing = []
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    values = {**found, "platform": platform.platform(), "analyzer": ANALYZER}
    if missing:
        todo = f"pip install {' '.join(missing)}"
        return Check("versions", "failed", f"{told}; missing: {', '.join(missing)}", todo, values)
    return Check("versions", "ok", told, values=values)


async def _model() -> Check:
    started = time.perf_counter()
    embedder = await in_worker(load_embedder, DEFAULT_MODEL)
    load_ms = (time.perf_counter() - started) * 1000.0
    near, same, far = await in_worker(
        embedder.embed,
        ["how do I get my money back", "I would like a refund", "the weather on Mars"],
    )
    values = {"model_id": embedder.model_id, "dim": embedder.dim, "load_ms": round(load_ms, 1)}
    if near @ same <= near @ far:
        todo = "reinstall moss-voice: the model loads but does not tell meanings apart"
        return Check("model", "failed", "loads, but its vectors make no sense", todo, values)
    told = f"{embedder.model_id}, {embedder.dim} dimensions, loaded in {load_ms:.0f} ms"
    return Check("model", "ok", told, values=values)


async def _cloud(shell: Shell) -> Check:
    """Check the credentials, and that of two who commit one version the first wins."""
    project_key = where(shell.project_key, "MOSS_PROJECT_KEY")
    opened = partial(open_cloud, where(shell.cloud, "MOSS_VOICE_CLOUD"), key=project_key)
    cloud = await in_worker(opened)
    try:
        project = await cloud.check_credentials(
            where(shell.project_id, "MOSS_PROJECT_ID"), project_key
        )
        values: dict[str, Any] = {"cloud": cloud.name, "project": project}
        told = f"{cloud.name}, project {project!r}"
        try:
            commit_ms = await _tried(cloud, project)
        except PermissionDeniedError:
            return Check("cloud", "ok", f"{told}: the key may read, and no more", values=values)
    finally:
        await cloud.close()
    values["commit_ms"] = round(commit_ms, 2)
    told += f": a commit takes {commit_ms:.1f} ms, the first one wins"
    return Check("cloud", "ok", told, values=values)


async def _tried(cloud: Cloud, project: str) -> float:
    """Try commits where they are in nobody's way; returns how long one takes."""
    if not isinstance(cloud.log, ObjectLog):
        # A server lets a key into its own project alone; one name, so that little is left of it.
        return await _first_commit_wins(cloud, project, "doctor-probe")
    scratch = f"doctor-{secrets.token_hex(6)}"
    try:
        return await _first_commit_wins(cloud, scratch, "probe")
    finally:
        await _sweep(cloud.log.objects, f"{encode_name(scratch)}/probe/log")
        await in_worker(_remove_folder, Path(cloud.name) / encode_name(scratch))


async def _first_commit_wins(cloud: Cloud, project: str, index: str) -> float:
    at = datetime.now(UTC)
    head, newest = await cloud.log.head(project, index)
    mine = Commit(
        index=index,
        index_id="probe",
        version=newest + 1,
        parent=head.version if head is not None else 0,
        changed=newest + 1,
        replaced=None,
        model_id=DEFAULT_MODEL,
        dim=1,
        analyzer=ANALYZER,
        segments=(),
        doc_count=0,
        created_at=at,
        updated_at=at,
        job_id=secrets.token_hex(8),
    )
    started = time.perf_counter()
    stored = await cloud.commit(project, mine)
    commit_ms = (time.perf_counter() - started) * 1000.0
    again = await cloud.commit(project, replace(mine, job_id="theirs"))
    read = await cloud.read_commit(project, index, mine.version)
    if not stored or again or read != mine:
        raise CloudUnavailableError(
            f"{cloud.name} does not keep the first of two commits: pushes would be lost there"
        )
    await cloud.delete_index(project, index)
    return commit_ms


async def _sweep(objects: Store, folder: str) -> None:
    """Remove what a deleted index leaves: the record of its deletion."""
    left = await objects.listing(folder)
    await objects.delete([f"{folder}/{file.name}" for file in left])


def _remove_folder(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)


async def _journal(shell: Shell) -> Check:
    default = Path(platformdirs.user_data_dir("moss_voice", appauthor=False)) / "journal"
    folder = shell.journal or default
    sync_ms = await in_worker(_sync_ms, folder)
    told = f"{folder}: a turn is on disk in {sync_ms:.1f} ms"
    values = {"directory": str(folder), "sync_ms": round(sync_ms, 2)}
    if sync_ms > _DEADLINE_MS:
        return Check("journal", "slow", told, "put the journal on a faster disk", values)
    return Check("journal", "ok", told, values=values)


def _sync_ms(folder: Path) -> float:
    project = f"doctor-{secrets.token_hex(6)}"
    header = Header(project, None, "probe", DEFAULT_MODEL, time.time_ns() // 10**6)
    book = Journal.create(folder, header)
    try:
        took = []
        for number in range(_SYNCS):
            started = time.perf_counter()
            book.append(Put({"id": f"turn-{number}", "text": "x" * 60}, number + 1))
            book.sync()
            took.append((time.perf_counter() - started) * 1000.0)
    finally:
        book.clear()
        (folder / project).rmdir()
    return statistics.median(took)


async def _speed() -> Check:
    """Measure what a live call waits for: an embedding, and whole contexts of the demo's call."""
    embedder = await in_worker(load_embedder, DEFAULT_MODEL)
    embed_ms = await in_worker(_embed_ms, embedder)
    tally = Tally(calls=1)
    name = f"memory://doctor-{secrets.token_hex(6)}"
    with tempfile.TemporaryDirectory(prefix="moss-voice-doctor-") as folder:
        root = Path(folder)
        async with MossClient(
            "doctor", "", cloud=name, cache_path=root / "cache", journal_path=root / "journal"
        ) as client:
            await client.create_index("faq", demo.faq_documents())
            script = demo.call()
            call = await client.call(script.id, knowledge=["faq"], deadline_ms=60_000.0)
            async for played in play(call, script):
                tally.add(played)
            await call.discard()
    measured = tally.as_json()
    context, heard = measured["context_ms"], measured["heard_ms"]
    assert isinstance(context, dict)  # noqa: S101 - the demo's call asks for contexts
    assert isinstance(heard, dict)  # noqa: S101 - and has turns
    told = (
        f"embedding 16 tokens {embed_ms:.1f} ms; context {context['median']:.1f} ms"
        f" (p95 {context['p95']:.1f}); heard {heard['median']:.1f} ms"
    )
    values = {"embed_ms": round(embed_ms, 2), "context_ms": context, "heard_ms": heard}
    if tally.outcomes["failed"]:
        todo = "run it with MOSS_VOICE_DEBUG=1 and report what it logs"
        return Check("speed", "failed", f"{tally.outcomes['failed']} contexts failed", todo, values)
    if context["p95"] > _DEADLINE_MS:
        todo = "the machine is too busy or too small: contexts would come late in a live call"
        return Check("speed", "slow", told, todo, values)
    return Check("speed", "ok", told, values=values)


def _embed_ms(embedder: Embedder) -> float:
    took = []
    salt = secrets.randbelow(10**6)
    for number in range(_EMBEDS):
        text = _TURN.format((salt + number) % 900 + 100)
        started = time.perf_counter()
        embedder.embed_query(text)
        took.append((time.perf_counter() - started) * 1000.0)
    return statistics.median(took)


async def _memory() -> Check:
    peak = await asyncio.to_thread(_peak_mb)
    if peak is None:
        return Check("memory", "ok", "not told by this system")
    return Check("memory", "ok", f"{peak:.0f} MB at the most", values={"peak_mb": round(peak, 1)})


def _peak_mb() -> float | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _show(shell: Shell, checks: list[Check]) -> None:
    styles = {"ok": "green", "slow": "yellow", "failed": "red"}
    for check in checks:
        head = Text.assemble(
            (f"{check.status:<7}", styles[check.status]), (f"{check.name:<10}", "bold")
        )
        show_wrapped(shell.out, Text(check.told), head=head)
        if check.todo:
            show_wrapped(shell.out, Text(check.todo, style="bold"), head=Text(" " * head.cell_len))
    failed, slow = (sum(c.status == status for c in checks) for status in ("failed", "slow"))
    if failed:
        verdict = Text(f"{failed} of {len(checks)} checks failed.", style="bold red")
    elif slow:
        verdict = Text("Everything works, but too slowly for a live call.", style="bold yellow")
    else:
        verdict = Text("All well.", style="bold green")
    shell.out.print(verdict)
