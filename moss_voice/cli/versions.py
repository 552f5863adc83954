"""What becomes of an index in time: its versions, how long it is kept, who can read it, what is forgotten.

The law: nothing goes before somebody was asked, and what is told to be gone was looked for once more.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from moss_voice.call.recording import find_recordings, recordings_path
from moss_voice.cli.indexes import Column, kept_until, moment, period, tabled
from moss_voice.cli.shell import FAILED, Shell, counted, plain
from moss_voice.client import MossClient
from moss_voice.cloud.cloud import Forgotten
from moss_voice.cloud.sealing import SealingKey, new_key
from moss_voice.errors import (
    CorruptDataError,
    EncryptionKeyError,
    IndexNotFoundError,
    MossError,
)
from moss_voice.types import IndexInfo, IndexVersion

__all__ = [
    "collect",
    "encrypt",
    "forget",
    "history",
    "new",
    "restore",
    "set_ttl",
    "show_ids",
]

T = TypeVar("T")


async def history(shell: Shell, name: str) -> None:
    """Tell about the versions of an index, newest first."""
    async with shell.client() as client:
        found = await client.history(name)
    if shell.json:
        shell.emit(found)
        return
    columns = [
        Column("version", [f"{one.version}" for one in found], right=True),
        Column("what", [_what(one) for one in found], folds=True),
        Column("documents", [f"{one.doc_count}" for one in found], right=True, rank=1),
        Column("segments", [f"{one.segments}" for one in found], right=True, rank=3),
        Column("size", [decimal(one.size_bytes) for one in found], right=True, rank=2),
        Column("when", [moment(one.at) for one in found]),
    ]
    current = [line for line, one in enumerate(found) if one.current]
    shell.out.print(tabled(columns, shell.out.width, bold=current))


def _what(version: IndexVersion) -> str:
    told = {
        "push": "push",
        "restore": f"restore of {version.of}",
        "replace": f"replaced {version.of}",
        "upkeep": "upkeep",
    }[version.kind]
    return f"{told}, current" if version.current else told


async def restore(shell: Shell, name: str, version: int, *, sure: bool) -> None:
    """Make a new version with the documents of an older one, after a question."""
    async with shell.client() as client:
        if not sure:
            versions = await client.history(name)
            old = next((one for one in versions if one.version == version), None)
            # Where it is not kept, restoring tells so.
            if old is not None and not old.current:
                await shell.ask(
                    f"Put version {version} of {plain(name)!r} ({counted(old.doc_count, 'document')},"
                    f" {moment(old.at)}) in the place of version {versions[0].version}"
                    f" ({counted(versions[0].doc_count, 'document')})?"
                )
        info = await client.restore_index(name, version)
    if shell.json:
        shell.emit(info)
    elif info.version == version:
        _tell(shell, name, f"version {version} is the current one already")
    else:
        documents = counted(info.doc_count, "document")
        _tell(shell, name, f"version {info.version} holds what {version} held, {documents}")


def _tell(shell: Shell, name: str, what: str) -> None:
    shell.out.print(Text.assemble((plain(name), "bold"), f": {what}"))


async def collect(shell: Shell, names: Sequence[str] | None, *, grace_s: float, keep: int) -> None:
    """Remove what nobody needs any more of indexes, of all where `names` is None."""
    async with shell.client() as client:

        async def one(name: str) -> int:
            return await client.collect_index(name, grace=grace_s, keep=keep)

        if names is None:
            # What was deleted, or never finished, is what there is to collect.
            names = await client.list_names()
        removed, failed = await _each(shell, client, names, "Collecting", one)
    if shell.json:
        shell.emit([{"index_name": name, "removed": count} for name, count in removed.items()])
    else:
        for name, count in removed.items():
            if count or len(removed) == 1:
                told = f"{counted(count, 'object')} removed" if count else "nothing to remove"
                _tell(shell, name, told)
        if len(removed) != 1:
            total = counted(sum(removed.values()), "object")
            shell.out.print(f"{total} removed from {_indexes(len(removed))}")
    _raise(shell, failed)


def _indexes(number: int) -> str:
    return "1 index" if number == 1 else f"{number} indexes"


async def _each(
    shell: Shell,
    client: MossClient,
    names: Sequence[str] | None,
    what: str,
    work: Callable[[str], Awaitable[T]],
) -> tuple[dict[str, T], list[MossError]]:
    """Do something to each index; what is wrong with one does not keep the others from it."""
    if names is None:
        names = [info.name for info in await client.list_indexes()]
    names = list(dict.fromkeys(names))
    done: dict[str, T] = {}
    failed: list[MossError] = []
    with shell.progress(what, quiet=len(names) < 2) as moved:
        for count, name in enumerate(names):
            moved(count, len(names))
            try:
                done[name] = await work(name)
            except (CorruptDataError, EncryptionKeyError, IndexNotFoundError) as error:
                failed.append(error)
    return done, failed


def _raise(shell: Shell, failed: Sequence[MossError]) -> None:
    """Tell of all failures, and end with the last one."""
    for error in failed[:-1]:
        shell.err.print(Text(f"error: {plain(str(error))}"), soft_wrap=True)
    if failed:
        raise failed[-1]


async def set_ttl(shell: Shell, name: str, ttl_s: float | None, *, sure: bool) -> None:
    """Set how long an index is kept; asks where that deletes it at once."""
    async with shell.client() as client:
        if ttl_s is not None and not sure:
            info = await client.get_index(name)
            if _is_over(info, ttl_s):
                if not sys.stdin.isatty():
                    raise typer.BadParameter(
                        f"{plain(name)!r} last changed {moment(info.updated_at)}, so {period(ttl_s)}"
                        " deletes it at once: pass --yes",
                        param_hint="DURATION",
                    )
                await shell.ask(
                    f"Index {plain(name)!r} last changed {moment(info.updated_at)}: delete it now, with"
                    f" {counted(info.doc_count, 'document')}, for good?"
                )
        info = await client.set_ttl(name, ttl_s)
        over = info.ttl_s is not None and _is_over(info, info.ttl_s)
        if over:
            with suppress(IndexNotFoundError):
                await client.get_index(name)  # whoever looks at it first deletes it
    if shell.json:
        shell.emit(info)
    elif over:
        _tell(shell, name, "deleted, its time was up")
    else:
        _tell(shell, name, f"kept {kept_until(info)}")


def _is_over(info: IndexInfo, ttl_s: float) -> bool:
    return datetime.now(UTC) - info.updated_at >= timedelta(seconds=ttl_s)


async def encrypt(shell: Shell, names: Sequence[str] | None) -> None:
    """Seal indexes with the current key, all where `names` is None."""
    async with shell.client() as client:
        if not client.encryption_key_ids:
            raise EncryptionKeyError(
                "there is no key to encrypt with; `moss-voice key new` makes one"
            )
        key_id = client.encryption_key_ids[0]
        sealed, failed = await _each(shell, client, names, "Encrypting", client.encrypt_index)
    if shell.json:
        shell.emit(
            [
                {"index_name": name, "key_id": key_id, "changed": changed}
                for name, changed in sealed.items()
            ]
        )
    else:
        for name, changed in sealed.items():
            told = f"encrypted with key {key_id}" if changed else "nothing to do"
            _tell(shell, name, told)
        if not sealed and not failed:
            shell.out.print("No indexes yet")
    _raise(shell, failed)


# --- forgetting ------------------------------------------------------------------------------------


def _report_recordings(shell: Shell) -> None:
    """Say that recordings, which hold text too, are not looked through."""
    folder = recordings_path(None) or recordings_path(True)
    there = len(find_recordings(folder)) if folder is not None else 0
    if there:
        told = (
            f"{counted(there, 'recording')} of calls on this machine may hold what was said too:"
            " `moss-voice recordings list`, `recordings delete`"
        )
        shell.err.print(Text(told, style="yellow"))


async def forget(
    shell: Shell,
    condition: Mapping[str, Any],
    names: Sequence[str] | None,
    *,
    dry_run: bool,
    sure: bool,
) -> None:
    """Delete what matches from all versions, after a question, and look for it once more.

    The condition's values are what somebody wants forgotten: they are never shown.
    """
    async with shell.client() as client:
        for name in names or ():
            # A name that is mistyped must not pass for one where nothing is left.
            await client.get_index(name)
        found: list[Forgotten] = []
        if dry_run or not sure:
            if not dry_run:
                # What waits here is pushed first, so that it is asked about too.
                await client.recover()
            with shell.progress("Looking"):
                found = await client.forget(condition, index_names=names, dry_run=True)
        if dry_run:
            _report_dry_run(shell, found)
            return
        if found and not sure:
            _show(shell.err, found, done=False)
            await shell.ask(f"Forget {_sum(found, done=False)} for good?")
        with shell.progress("Forgetting"):
            done = await client.forget(condition, index_names=names)
        with shell.progress("Verifying"):
            left = await client.forget(condition, index_names=names, dry_run=True)
    if shell.json:
        shell.emit({"dry_run": False, **_told(done), "left": left, "verified": not left})
    else:
        if done:
            _show(shell.out, done, done=True)
        _report_left(shell, done, left)
        _report_recordings(shell)
    if left:
        raise typer.Exit(FAILED)


def _told(found: Sequence[Forgotten]) -> dict[str, object]:
    return {
        "documents": sum(one.documents for one in found),
        "older": sum(one.older for one in found),
        "indexes": found,
    }


def _report_dry_run(shell: Shell, found: Sequence[Forgotten]) -> None:
    if shell.json:
        shell.emit({"dry_run": True, **_told(found)})
    elif not found:
        shell.out.print("Nothing matches.")
    else:
        _show(shell.out, found, done=False)
        shell.out.print(f"{_sum(found, done=False)} would be forgotten.")


def _report_left(shell: Shell, done: Sequence[Forgotten], left: Sequence[Forgotten]) -> None:
    if not left:
        told = "Nothing matches, in no version."
        if done:
            told = f"{_sum(done, done=True)} forgotten; looked again: nothing that matches is left."
        shell.out.print(Text("✓ ", "green") + Text(told))
        return
    told = f"{_sum(done, done=True)} forgotten, and some is left:"
    shell.out.print(Text("✗ ", "red") + Text(told))
    pending = sum(one.pending for one in left)
    if pending:
        segments = counted(pending, "segment")
        shell.out.print(
            f"  {segments} of a push that was not finished, young enough for it to go on: run this"
            " again in an hour."
        )
    if any(one.documents or one.older for one in left):
        shell.out.print(
            f"  {_sum(left, done=False)}, pushed meanwhile: end those calls, and run this again."
        )


def _sum(found: Sequence[Forgotten], *, done: bool) -> str:
    documents = sum(one.documents for one in found)
    older = sum(one.older for one in found)
    # What pushes left that broke off.
    loose = [one for one in found if not (one.documents or one.older)]
    unfinished = sum(one.removed if done else one.pending for one in loose)
    told = [
        counted(number, what)
        for number, what in (
            (documents, "document"),
            (older, "older row"),
            (unfinished, "unfinished segment"),
        )
        if number
    ]
    return " and ".join(told) or "nothing"


def _show(console: Console, found: Sequence[Forgotten], *, done: bool) -> None:
    """Show a table of what goes or has gone, an index a line."""
    columns = [
        Column("index", [plain(one.index) for one in found], folds=True),
        Column("documents", [f"{one.documents}" for one in found], right=True),
        Column("older rows", [f"{one.older}" for one in found], right=True),
    ]
    if any(one.pending for one in found):
        columns.append(
            Column("unfinished", [f"{one.pending}" for one in found], right=True, rank=1)
        )
    if done:
        columns.append(
            Column("files removed", [f"{one.removed}" for one in found], right=True, rank=2)
        )
    console.print(tabled(columns, console.width))


# --- encryption keys -------------------------------------------------------------------------------


def new(shell: Shell) -> None:
    """Print a new key to stdout, and to stderr what to do with it."""
    key = new_key()
    key_id = SealingKey(key).id
    if shell.json:
        shell.emit({"key": key, "key_id": key_id}, indent=None)
    else:
        sys.stdout.write(key + "\n")
        sys.stdout.flush()
    for line in _KEY_HINTS:
        told = Text(line.format(key_id=key_id), style="dim")
        shell.err.print(told, soft_wrap=line.startswith("  "))


_KEY_HINTS = (
    "Key {key_id}. Without it nobody reads what it sealed: keep a copy in a safe place.",
    "In a file that you alone can read:",
    "  (umask 077; moss-voice key new > keys.txt)",
    "Use it by --key-file keys.txt or MOSS_VOICE_ENCRYPTION_KEY_FILE, or without a file by MOSS_VOICE_ENCRYPTION_KEY.",
    "To change keys, put the new one on the first line and leave the older ones below, then run `moss-voice index encrypt --all`.",
)


def show_ids(shell: Shell) -> None:
    """Print the ids of the keys in use."""
    ids = shell.client().encryption_key_ids
    if not ids:
        raise EncryptionKeyError("there is no encryption key; `moss-voice key new` makes one")
    if shell.json:
        shell.emit([{"key_id": key_id, "current": key_id == ids[0]} for key_id in ids])
        return
    for key_id in ids:
        shell.out.print(Text(f"{key_id}  {'current' if key_id == ids[0] else 'older'}"))
