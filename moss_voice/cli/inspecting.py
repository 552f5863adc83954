"""`moss-voice inspect` and `moss-voice recordings`: recorded calls, looked at.

The law: whatever is named is found or the way to it is told; a page of a call is served to this machine
alone, and a file of it leaves out what a redactor finds unless somebody says otherwise.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import typer
from rich.filesize import decimal
from rich.text import Text

from moss_voice.call.recording import (
    Recording,
    Settings,
    find_recordings,
    is_recording,
    read_head,
    read_recording,
    recordings_path,
)
from moss_voice.cli.demo import kept_demo
from moss_voice.cli.indexes import Column, moment, tabled
from moss_voice.cli.play import play
from moss_voice.cli.replay import Options, bring_knowledge, place_for, scripts_of
from moss_voice.cli.shell import FAILED, Shell, counted, plain, quiet_recordings, where
from moss_voice.client import MossClient
from moss_voice.errors import InvalidArgumentError, MossError, RecordingNotFoundError
from moss_voice.inspector.comparing import Comparison, compare
from moss_voice.inspector.engine import Engine, check_settings
from moss_voice.inspector.page import page
from moss_voice.inspector.redacting import redacted, redacted_contexts
from moss_voice.inspector.serving import InspectorServer
from moss_voice.redaction import PiiRedactor

__all__ = ["Look", "delete", "inspect", "list_all", "with_changes"]

_SHOWN = 50
# As long as people would have taken for it, at least.
_DEMO_S = 120.0
_REDACTED = (
    "Card numbers, addresses, phone and id numbers were left out when this file was written, spoken ones"
    " too. Names and all else that was said are in it."
)


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be looked at, and how.

    Attributes:
        what: A recording's file, a file of calls to be played, the id of a recorded call, or `demo`.
        call: Which call of a file of calls.
        knowledge, focus: For a file of calls; see `replay.Options`.
        directory: Where recordings are; where they usually are, if None.
        out: Write a file in place of serving pages.
        redact: Leave out of it what a redactor finds.
        against: Settings to compare the call with, as `name=value`.
        port: Of the pages; 0 takes one that is free.
        browse: Open a browser.
    """

    what: str
    call: str | None = None
    knowledge: Sequence[str] = ()
    focus: Sequence[str] | None = None
    directory: Path | None = None
    out: Path | None = None
    redact: bool = True
    against: Sequence[str] = ()
    port: int = 0
    browse: bool = True


@dataclass(frozen=True, slots=True)
class _Found:
    """A recording, and where its knowledge can be looked up.

    Attributes:
        client: None where that is nowhere.
        unable: Why, then.
        note: What people should know of the call.
    """

    recording: Recording
    client: MossClient | None
    unable: str = ""
    note: str = ""


async def inspect(shell: Shell, look: Look) -> None:
    """Serve the pages of a recorded call until somebody ends it, or write them to a file."""
    async with _find(shell, look) as found:
        recording = found.recording
        settings = with_changes(recording.settings, look.against)
        engine, note = await _engine(shell, found)
        try:
            comparison = None
            if look.against:
                if engine is None:
                    raise InvalidArgumentError(f"--against: {note}")
                comparison = await _compared(shell, engine, settings, look)
            if look.out is not None:
                _write(shell, look, found, engine, comparison)
            else:
                await _serve(shell, look, found, engine, comparison, note)
        finally:
            if engine is not None:
                await engine.close()


# --- finding ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _find(shell: Shell, look: Look) -> AsyncIterator[_Found]:
    path = Path(look.what)
    is_file = await asyncio.to_thread(path.is_file)
    if is_file and not is_recording(path):
        async with _played(shell, path, look) as found:
            yield found
        return
    if look.call or look.knowledge or look.focus:
        raise InvalidArgumentError(
            "--call, --knowledge and --focus are for a file of calls that is played; a recording holds"
            " its own"
        )
    cloud, note = None, ""
    if is_file:
        recording = read_recording(path)
    elif look.what == "demo":
        demo = kept_demo()
        if demo is None:
            raise RecordingNotFoundError("no demo has been played yet: run `moss-voice demo`")
        cloud = str(demo.cloud)
        recording = replace(read_recording(demo.recording), cloud=cloud)
        note = "The demo's call is made up." + (
            " It was played faster than life: the times are those of that session."
            if recording.ended_s < _DEMO_S
            else ""
        )
    else:
        recording = read_recording(_newest(look))
    client, unable = _client(shell, recording, cloud)
    if client is None:
        yield _Found(recording, None, unable, note)
        return
    async with client:
        yield _Found(recording, client, note=note)


def _newest(look: Look) -> Path:
    """Return the newest recording of a call."""
    directory = _directory(look.directory)
    seen: dict[str, None] = {}
    for path in find_recordings(directory):
        head = read_head(path)
        if head is not None and head[0] == look.what:
            return path
        if head is not None:
            seen[head[0]] = None
    there = f"there are: {', '.join(list(seen)[:5])}" if seen else "there are none"
    raise RecordingNotFoundError(
        f"no file {look.what!r} here and no recording of a call of that name in {directory}"
        f" ({there}); a call is recorded by `record=True` or MOSS_VOICE_RECORD=1"
    )


def _directory(given: Path | None) -> Path:
    path = given if given is not None else recordings_path(None) or recordings_path(True)
    assert path is not None  # noqa: S101 - True always names one
    return path


def _client(shell: Shell, recording: Recording, cloud: str | None) -> tuple[MossClient | None, str]:
    """Return a client of the cloud that the call knew, and why there is none."""
    told = where(shell.cloud, "MOSS_VOICE_CLOUD") if cloud is None else None
    place = cloud or told or recording.cloud
    if place is not None and place.startswith("memory://"):
        return None, "its cloud ended with the process that it was in"
    if place is not None and "://" not in place and not Path(place).is_dir():
        return None, f"its cloud, {place}, is not here; --cloud names another"
    client = MossClient(
        shell.project_id or recording.project,
        shell.project_key,
        cloud=place,
        cache_path=shell.cache,
        journal_path=shell.journal,
        encryption_key_file=shell.key_file,
    )
    return client, ""


@asynccontextmanager
async def _played(shell: Shell, path: Path, look: Look) -> AsyncIterator[_Found]:
    """Play a call of a file, recording it; the recording goes with the place it was played in."""
    options = Options(knowledge=look.knowledge, focus=look.focus, call=look.call)
    scripts = await asyncio.to_thread(scripts_of, path, options)
    if len(scripts) > 1:
        raise InvalidArgumentError(
            f"{path.name} holds {len(scripts)} calls: name one with --call, such as {scripts[0].id!r}"
        )
    with tempfile.TemporaryDirectory(prefix="moss-voice-inspect-") as folder:
        async with place_for(shell, options) as place:
            names = [await bring_knowledge(shell, place, name, options) for name in look.knowledge]
            with quiet_recordings():
                call = await place.client.call(
                    scripts[0].id, knowledge=names, focus=look.focus, record=folder
                )
            try:
                with shell.progress("Playing the call") as moved:
                    done = 0
                    async for _ in play(call, scripts[0]):
                        done += 1
                        moved(done, len(scripts[0].turns))
            finally:
                await call.end()
                await call.recorded()
            found = find_recordings(folder)
            if not found:
                raise MossError("the call could not be recorded in the temporary directory")
            yield _Found(read_recording(found[0]), place.client)


# --- asking again ----------------------------------------------------------------------------------


async def _engine(shell: Shell, found: _Found) -> tuple[Engine | None, str]:
    try:
        with shell.progress("Embedding the turns anew") as moved:
            return await Engine.open(
                found.recording, found.client, unable=found.unable, on_progress=moved
            ), ""
    except MossError as error:
        return None, str(error)


async def _compared(
    shell: Shell, engine: Engine, settings: Settings, look: Look
) -> tuple[str, Comparison]:
    with shell.progress("Asking the call again") as moved:
        again = await engine.rerun(settings, on_progress=moved)
    before = engine.recording.contexts
    if look.out is not None and look.redact:
        redact = PiiRedactor()
        before, again = redacted_contexts(before, redact), redacted_contexts(again, redact)
    return ", ".join(look.against), compare(before, again)


def with_changes(settings: Settings, changes: Sequence[str]) -> Settings:
    """Return settings with some changed, each given as `name=value`.

    Raises:
        InvalidArgumentError: If a name is none, or a value does not fit.
    """
    kinds: dict[str, type[int | float]] = {
        "top_k": int,
        "max_tokens": int,
        "alpha": float,
        "min_score": float,
    }
    lists = ("without", "focus")
    values: dict[str, Any] = {}
    for change in changes:
        name, sign, value = change.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or name not in (*kinds, *lists):
            raise InvalidArgumentError(
                f"--against {change}: expected NAME=VALUE with one of {', '.join([*kinds, *lists])}"
            )
        if name in lists:
            values[name] = tuple(part.strip() for part in value.split(",") if part.strip())
            continue
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise InvalidArgumentError(f"--against {change}: expected a number") from None
    changed = replace(settings, **values)
    check_settings(changed)
    return changed


# --- showing ---------------------------------------------------------------------------------------


def _write(
    shell: Shell,
    look: Look,
    found: _Found,
    engine: Engine | None,
    comparison: tuple[str, Comparison] | None,
) -> None:
    recording = found.recording
    assert look.out is not None  # noqa: S101 - inspect() looked
    shown = redacted(recording, PiiRedactor()) if look.redact else recording
    text = page(
        shown,
        live=False,
        missing=engine.missing if engine is not None else {},
        changed=engine.changed if engine is not None else {},
        note=_REDACTED if look.redact else found.note,
        comparison=comparison,
    )
    try:
        look.out.write_text(text, "utf-8")
    except OSError as error:
        raise MossError(f"{look.out}: {error.strerror or 'cannot be written'}") from None
    size = look.out.stat().st_size
    if shell.json:
        shell.emit({"out": str(look.out), "bytes": size, "redacted": look.redact})
        return
    what = (
        "card numbers, addresses, phone and id numbers are left out; names are not: look before you send it"
        if look.redact
        else "nothing is left out"
    )
    shell.out.print(Text.assemble((f"{look.out}", "cyan"), f", {decimal(size)}: {what}."))


async def _serve(
    shell: Shell,
    look: Look,
    found: _Found,
    engine: Engine | None,
    comparison: tuple[str, Comparison] | None,
    note: str,
) -> None:
    recording = found.recording
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    told = [found.note] if found.note else []
    if note:
        told.append(f"It can be looked at, not asked again: {note}")
    server = InspectorServer(
        engine or recording,
        loop,
        port=look.port,
        note=" ".join(told),
        comparison=comparison,
    )
    server.start()
    try:
        if shell.json:
            shell.emit({"url": server.url, "recording": str(recording.path or "")}, indent=None)
        else:
            _say(shell, recording, engine, server.url, note)
        sys.stdout.flush()
        if look.browse and sys.stdout.isatty():
            # A machine without a browser is told where to look all the same.
            await asyncio.to_thread(webbrowser.open, server.url)
        await stop.wait()
    finally:
        await asyncio.to_thread(server.close)


def _say(shell: Shell, recording: Recording, engine: Engine | None, url: str, note: str) -> None:
    turns = counted(len(recording.turns), "turn")
    shell.out.print(
        Text.assemble(
            (plain(recording.call), "bold"), f": {turns}, {len(recording.contexts)} contexts"
        )
    )
    if note:
        shell.out.print(Text(f"It can be looked at, not asked again: {note}", style="yellow"))
    missing: Mapping[str, str] = engine.missing if engine is not None else {}
    for name, why in missing.items():
        told = f"Without the knowledge {plain(name)!r}: {plain(why)}"
        shell.out.print(Text(told, style="yellow"))
    shell.out.print(Text.assemble("Open ", (url, "cyan")), soft_wrap=True)
    shell.out.print(
        Text("On this machine alone, and with this address; Ctrl-C ends it.", style="dim")
    )


# --- recordings ------------------------------------------------------------------------------------


def list_all(shell: Shell, directory: Path | None) -> None:
    """List recordings, the newest first."""
    folder = _directory(directory)
    told = []
    for path in find_recordings(folder):
        head = read_head(path)
        if head is not None:
            call, project, at = head
            told.append((call, project, at, path.stat().st_size, path))
    if shell.json:
        shell.emit(
            [
                {
                    "call": call,
                    "project": project,
                    "created_at": at,
                    "size_bytes": size,
                    "path": str(path),
                }
                for call, project, at, size, path in told
            ]
        )
        return
    if not told:
        shell.out.print(Text(f"No recordings in {folder}."))
        hint = "A call is recorded by `record=True`, or everywhere by MOSS_VOICE_RECORD=1; `moss-voice inspect demo` shows the demo's."
        shell.out.print(Text(hint, style="dim"))
        return
    shown = told[:_SHOWN]
    columns = [
        Column("call", [plain(call) for call, *_ in shown], folds=True),
        Column("project", [plain(project) for _, project, *_ in shown], rank=2),
        Column("when", [moment(at) for _, _, at, *_ in shown]),
        Column("size", [decimal(size) for *_, size, _ in shown], right=True, rank=1),
    ]
    shell.out.print(tabled(columns, shell.out.width))
    if len(told) > len(shown):
        shell.out.print(
            Text(f"and {len(told) - len(shown)} older ones; --json lists all", style="dim")
        )
    shell.out.print(
        Text(f"\nThey hold what was said, as text, in {folder}", style="dim"), soft_wrap=True
    )


async def delete(
    shell: Shell,
    calls: Sequence[str],
    *,
    directory: Path | None,
    older_than_s: float | None,
    everything: bool,
    sure: bool,
) -> None:
    """Delete recordings of some calls, or all that are older than so long."""
    folder = _directory(directory)
    before = datetime.now(UTC) - timedelta(seconds=older_than_s or 0.0)
    wanted = set(calls)
    doomed, known = [], set[str]()
    for path in find_recordings(folder):
        head = read_head(path)
        # One that cannot be read holds text all the same.
        call, at = (head[0], head[2]) if head is not None else ("", _changed(path))
        known.add(call)
        if (everything or not wanted or call in wanted) and at <= before:
            doomed.append(path)
    if wanted - known:
        raise RecordingNotFoundError(
            f"no recording of {', '.join(sorted(wanted - known))} in {folder}; nothing was deleted"
        )
    if doomed and not sure:
        await shell.ask(f"Delete {counted(len(doomed), 'recording')} for good?")
    for path in doomed:
        path.unlink(missing_ok=True)
    if any(path.exists() for path in doomed):
        raise typer.Exit(FAILED)
    if shell.json:
        shell.emit({"deleted": [str(path) for path in doomed]})
    else:
        shell.out.print(Text(f"Deleted {counted(len(doomed), 'recording')}."))


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)
