"""What the cloud holds: indexes, their documents, calls, and journals that dead processes left."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import typer
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from moss_voice.cli.explain import explained
from moss_voice.cli.play import show_line
from moss_voice.cli.shell import FAILED, Shell, counted, plain
from moss_voice.client import MossClient
from moss_voice.errors import IndexNotFoundError, InvalidArgumentError
from moss_voice.faq import read_documents
from moss_voice.types import (
    DocumentInfo,
    IndexInfo,
    IndexVersion,
    MutationOptions,
    MutationResult,
    QueryOptions,
)

__all__ = [
    "Column",
    "add",
    "create",
    "delete",
    "export",
    "kept_until",
    "list_all",
    "moment",
    "period",
    "query",
    "recover",
    "show",
    "show_session",
    "tabled",
]


def _documents(files: Sequence[Path], max_words: int) -> list[DocumentInfo]:
    """Read FAQ files together; an id may occur in one of them alone."""
    found: list[DocumentInfo] = []
    origin: dict[str, Path] = {}
    for file in files:
        for doc in read_documents(file, max_words=max_words):
            if doc.id in origin:
                raise InvalidArgumentError(
                    f"{file}: the id {doc.id!r} is in {origin[doc.id]} too; ids must be unique (files of"
                    " one directory are told apart by their path: pass the directory)"
                )
            origin[doc.id] = file
            found.append(doc)
    return found


async def create(
    shell: Shell,
    name: str,
    files: Sequence[Path],
    *,
    model: str | None,
    max_words: int,
    ttl_s: float | None = None,
) -> None:
    """Index FAQ files under a new name."""
    documents = await asyncio.to_thread(_documents, files, max_words)
    async with shell.client() as client:
        with shell.progress(f"Embedding {len(documents)} documents") as moved:
            result = await client.create_index(name, documents, model, on_progress=moved, ttl=ttl_s)
    _changed(shell, result, f"created with {counted(result.doc_count, 'document')}")


async def add(
    shell: Shell, name: str, files: Sequence[Path], *, upsert: bool, max_words: int
) -> None:
    """Add FAQ files to an index."""
    documents = await asyncio.to_thread(_documents, files, max_words)
    async with shell.client() as client:
        with shell.progress(f"Embedding {len(documents)} documents") as moved:
            result = await client.add_docs(
                name, documents, MutationOptions(upsert=upsert), on_progress=moved
            )
    _changed(shell, result, f"now {counted(result.doc_count, 'document')}")


def _changed(shell: Shell, result: MutationResult, what: str) -> None:
    if shell.json:
        shell.emit(result)
    else:
        shell.out.print(Text.assemble((plain(result.index_name), "bold"), f": {what}"))


async def list_all(shell: Shell) -> None:
    """Tell about every index."""
    async with shell.client() as client:
        found = await client.list_indexes()
    if shell.json:
        shell.emit(found)
        return
    if not found:
        shell.out.print("No indexes yet: moss-voice index create NAME FILES...")
        return
    columns = [
        Column("index", [plain(info.name) for info in found], folds=True),
        Column("documents", [f"{info.doc_count}" for info in found], right=True, rank=2),
        Column("version", [f"{info.version}" for info in found], right=True, rank=4),
        Column("model", [plain(info.model) for info in found], folds=True, rank=5),
        Column("updated", [moment(info.updated_at) for info in found], rank=1),
    ]
    # What few projects use takes no room from the others.
    if any(info.ttl_s is not None for info in found):
        kept = ["-" if info.ttl_s is None else period(info.ttl_s) for info in found]
        columns.append(Column("kept for", kept, rank=3))
    if any(info.encrypted for info in found):
        sealed = ["yes" if info.encrypted else "no" for info in found]
        columns.append(Column("encrypted", sealed, rank=3))
    shell.out.print(tabled(columns, shell.out.width))


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Above it.
        cells: A line each.
        right: For numbers.
        folds: True where long cells may go on below.
        rank: Where a terminal is too narrow, the highest go first; 0 stays.
    """

    title: str
    cells: Sequence[str]
    right: bool = False
    folds: bool = False
    rank: int = 0

    @property
    def width(self) -> int:
        """How wide it must be to be read."""
        widest = max(cell_len(cell) for cell in (self.title, *self.cells))
        return min(widest, _FOLDED_WIDTH) if self.folds else widest


_FOLDED_WIDTH = 24
_GAP = 2


def tabled(columns: Sequence[Column], width: int, *, bold: Collection[int] = ()) -> Table:
    """Return a table of the columns that a terminal has room for.

    Args:
        columns: As many cells in each.
        width: Of the terminal.
        bold: Lines to be made out from the others.
    """
    shown = list(columns)
    while sum(column.width + _GAP for column in shown) - _GAP > width:
        least = max(shown, key=lambda column: column.rank)
        if not least.rank:
            break
        shown.remove(least)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold",
        )
    for line, cells in enumerate(zip(*(column.cells for column in shown), strict=True)):
        table.add_row(*map(Text, cells), style="bold" if line in bold else "")
    return table


def moment(at: datetime) -> str:
    """Return a time as this place's clocks show it, to the minute."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M")


def period(seconds: float) -> str:
    """Return a duration as the options take it, in the largest unit that is exact: `30d`, `90s`."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:g}s"


async def show(shell: Shell, name: str) -> None:
    """Tell about one index."""
    async with shell.client() as client:
        info = await client.get_index(name)
    if shell.json:
        shell.emit(info)
        return
    table = Table.grid(padding=(0, 2))
    for key, value in (
        ("name", info.name),
        ("id", info.id),
        ("version", f"{info.version}"),
        ("status", info.status),
        ("documents", f"{info.doc_count}"),
        ("model", info.model),
        ("created", info.created_at.astimezone().isoformat(timespec="seconds")),
        ("updated", info.updated_at.astimezone().isoformat(timespec="seconds")),
        ("kept", kept_until(info)),
        ("encrypted", "yes" if info.encrypted else "no"),
    ):
        table.add_row(Text(key, style="dim"), Text(plain(value)))
    shell.out.print(table)


def kept_until(info: IndexInfo) -> str:
    """Tell when an index is to be deleted, should nobody change it before."""
    if info.ttl_s is None:
        return "until somebody deletes it"
    since = f"{period(info.ttl_s)} from its last change"
    try:
        return f"{since}, now until {moment(info.updated_at + timedelta(seconds=info.ttl_s))}"
    except OverflowError:
        return since


async def delete(shell: Shell, name: str, *, sure: bool) -> None:
    """Delete an index, after a question to whoever sits there."""
    async with shell.client() as client:
        info = await client.get_index(name)
        if not sure:
            question = f"Delete index {plain(name)!r} with {info.doc_count} documents for good?"
            await shell.ask(question)
        await client.delete_index(name)
    if shell.json:
        shell.emit({"index_name": name, "deleted": True, "doc_count": info.doc_count})
    else:
        shell.out.print(Text.assemble((plain(name), "bold"), ": deleted"))


async def _documents_of(
    client: MossClient, name: str, version: int | None
) -> tuple[IndexInfo | IndexVersion, list[DocumentInfo]]:
    """Return the documents of an index, or of an older version of it, and what is known of that."""
    if version is None:
        return await client.get_index(name), await client.get_docs(name)
    async with await client.session(name, version=version) as session:
        documents = await session.get_docs()
    found = [one for one in await client.history(name) if one.version == version]
    if not found:
        raise IndexNotFoundError(f"version {version} of index {name!r} was just removed")
    return found[0], documents


async def export(shell: Shell, name: str, out: Path | None, *, version: int | None = None) -> None:
    """Write an index's documents as JSON lines that `index create` and `index add` read."""
    async with shell.client() as client:
        _, documents = await _documents_of(client, name, version)
    rows = [_row(doc) for doc in documents]
    if out is not None:
        await asyncio.to_thread(_write, out, rows)
        if shell.json:
            shell.emit({"index_name": name, "doc_count": len(rows), "out": str(out)})
        else:
            shell.out.print(Text(f"{len(rows)} documents written to {out}"))
    elif shell.json:
        shell.emit({"index_name": name, "doc_count": len(rows), "docs": rows})
    else:
        for row in rows:
            sys.stdout.write(json.dumps(row) + "\n")


def _row(doc: DocumentInfo) -> dict[str, Any]:
    row: dict[str, Any] = {"id": doc.id, "text": doc.text}
    for field in ("metadata", "payload", "embedding"):
        value = getattr(doc, field)
        if value is not None:
            row[field] = value
    return row


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write beside the target and then replace it: never half a file."""
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


async def query(
    shell: Shell, name: str, text: str, options: QueryOptions, *, explain: bool = False
) -> None:
    """Ask an index; with `explain` tell what each result was ranked by. JSON always does."""
    async with shell.client() as client:
        result = await client.query(name, text, options)
    if shell.json:
        shell.emit(result)
        return
    for rank, doc in enumerate(result.docs, start=1):
        head = Text.assemble((f"{rank}. ", "bold"), (plain(doc.id), "cyan"), f"  {doc.score:.3f}")
        shell.out.print(head, soft_wrap=True)
        for why in explained(doc.parts, width=shell.out.width - 3) if explain else ():
            shell.out.print(Text(f"   {why}", style="dim"), soft_wrap=True)
        for line in Text(plain(doc.text)).wrap(shell.out, max(20, shell.out.width - 3)):
            line.rstrip()
            shell.out.print(Text.assemble("   ", line), soft_wrap=True)
        if doc.metadata:
            told = ", ".join(f"{key}={value}" for key, value in sorted(doc.metadata.items()))
            line = Text(f"   {plain(told)}", style="dim")
            line.truncate(shell.out.width, overflow="ellipsis")
            shell.out.print(line, soft_wrap=True)
    found = f"{len(result.docs)} found" if result.docs else "nothing found"
    shell.out.print(Text(f"{found} in {result.time_taken_ms:.1f} ms", style="dim"))


async def show_session(shell: Shell, name: str, *, version: int | None = None) -> None:
    """Print the turns of a stored call in the order spoken."""
    async with shell.client() as client:
        info, documents = await _documents_of(client, name, version)
    # What is no turn comes last, in the order it was added.
    documents.sort(key=lambda doc: _number(doc) or sys.maxsize)
    if shell.json:
        turns = [{**_row(doc), "turn": _number(doc)} for doc in documents]
        shell.emit({"session": name, "version": info.version, "turns": turns})
        return
    shell.out.print(
        Text.assemble(
            (plain(name), "bold"),
            f": {counted(info.doc_count, 'document')}, version {info.version}, updated",
            f" {moment(info.updated_at if isinstance(info, IndexInfo) else info.at)}",
        )
    )
    for doc in documents:
        metadata = doc.metadata or {}
        at_s = metadata.get("at_s")
        show_line(
            shell.out,
            at_s=float(at_s) if isinstance(at_s, int | float) else None,
            number=_number(doc),
            speaker=plain(str(metadata.get("speaker", "-"))),
            text=doc.text,
            interrupted=metadata.get("interrupted") is True,
        )


def _number(doc: DocumentInfo) -> int | None:
    number = (doc.metadata or {}).get("turn")
    return number if isinstance(number, int) else None


async def recover(shell: Shell) -> None:
    """Push what dead processes left, and tell what became of each call."""
    async with shell.client() as client:
        found = await client.recover()
    if shell.json:
        shell.emit(found)
    elif not found:
        shell.out.print("Nothing to recover: every call that ended was pushed, and no push waits.")
    else:
        for call in found:
            name = plain(call.index_name) or "an unreadable journal"
            told = {
                "pushed": f"pushed, {counted(call.turns, 'change')}",
                "elsewhere": f"kept: it belongs to {plain(call.detail)}; run it with that --cloud",
                "failed": f"kept, {counted(call.turns, 'change')}: {plain(call.detail)}",
            }[call.status]
            damaged = (
                f"; left out: {counted(call.damaged, 'damaged record')}" if call.damaged else ""
            )
            style = {"pushed": "green", "elsewhere": "yellow", "failed": "red"}[call.status]
            mark = "✓ " if call.status == "pushed" else "✗ "
            shell.out.print(Text.assemble((mark, style), (name, "bold"), f": {told}{damaged}"))
    if any(call.status == "failed" for call in found):
        raise typer.Exit(FAILED)
