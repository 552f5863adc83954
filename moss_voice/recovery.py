"""What a dead process or an absent cloud left behind: journals of calls and pushes that wait, sent on.

Whatever is sent is merged: sending it twice changes nothing, and nothing that somebody else has pushed
meanwhile is lost.
"""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from moss_voice.call.journal import Contents, Delete, Header, Journal, Put, find_journals
from moss_voice.cloud.cloud import Encoded
from moss_voice.errors import CloudUnavailableError, JournalError, MossError
from moss_voice.session import SessionIndex
from moss_voice.types import DocumentInfo, JobStatusResponse, RecoveredCall
from moss_voice.versions import Remote
from moss_voice.workers import in_worker, in_writer

__all__ = ["find_waiting", "recover_journals", "send_waiting"]

logger = logging.getLogger(__name__)


async def recover_journals(
    remote: Remote, directory: Path, call_id: str | None = None
) -> list[RecoveredCall]:
    """Push the turns of calls that nobody has in hand, and clear their journals.

    Args:
        remote: Where to; journals of other clouds are told of and left alone.
        directory: Of the journals.
        call_id: Only this call's.
    """
    found = await in_writer(find_journals, directory, remote.project)
    if call_id is not None:
        found = [
            journal
            for journal in found
            if journal.header is not None and journal.header.index_name == call_id
        ]
    results = [await _recover(remote, journal.path, journal.header) for journal in found]
    return [result for result in results if result is not None]


async def _recover(remote: Remote, path: Path, header: Header | None) -> RecoveredCall | None:
    name = header.index_name if header is not None else ""
    if header is not None and header.cloud != remote.where:
        return RecoveredCall(name, 0, 0, "elsewhere", header.cloud or "the embedded cloud")
    try:
        journal, contents = await in_writer(Journal.open, path)
    except JournalError as error:
        # Another process has it in hand, or is done with it.
        taken = error.errno in (errno.EAGAIN, errno.ENOENT)
        return None if taken else RecoveredCall(name, 0, 0, "failed", str(error))
    except MossError as error:
        return RecoveredCall(name, 0, 0, "failed", str(error))
    damaged = contents.damaged
    turns = sum(isinstance(record, Put) for record in _last_words(contents))
    try:
        await _push_journal(remote, contents)
        await in_writer(journal.clear)
    except MossError as error:
        return RecoveredCall(name, turns, damaged, "failed", f"{error.code}: {error}")
    finally:
        # Where it was not cleared it is kept; closing a cleared one does nothing.
        await in_writer(journal.close)
    return RecoveredCall(name, turns, damaged, "pushed")


async def _push_journal(remote: Remote, contents: Contents) -> None:
    records = _last_words(contents)
    if not records:
        return
    header = contents.header
    async with await SessionIndex.open(remote, header.index_name, header.model_id) as session:
        for record in records:
            if isinstance(record, Delete):
                await in_worker(
                    partial(session.remove, [record.id], written_at=record.written_at_ms)
                )
                continue
            doc = DocumentInfo(
                record.document["id"],
                record.document["text"],
                record.document.get("metadata"),
                None if record.embedding is None else tuple(record.embedding.tolist()),
            )
            await session.add_docs([doc], written_at=[record.written_at_ms])
        # The journal stays until the cloud has it: no need for an outbox.
        await session.push_index(on_conflict="merge", if_unreachable="raise")


def _last_words(contents: Contents) -> list[Put | Delete]:
    """Return the last record on each document that no push has covered, in the order of their times.

    Not of their lines: what a push found noted and no turn yet is written again behind it.
    """
    last: dict[str, Put | Delete] = {}
    first_ms: dict[str, int] = {}
    for record in contents.unpushed:
        id_ = record.id if isinstance(record, Delete) else str(record.document["id"])
        last[id_] = record
        first_ms[id_] = min(record.written_at_ms, first_ms.get(id_, record.written_at_ms))
    return [last[id_] for id_ in sorted(last, key=lambda id_: first_ms[id_])]


async def send_waiting(remote: Remote, index: str | None = None) -> list[RecoveredCall]:
    """Send the pushes that wait in the outbox, oldest first; what the cloud does not take stays.

    Args:
        remote: Where to; pushes for other clouds are told of and left alone.
        index: Only this index's.
    """
    outbox = remote.outbox
    if outbox is None:
        return []
    results: list[RecoveredCall] = []
    for path in await in_writer(outbox.find, remote.project, index):
        try:
            kept = await in_writer(outbox.read, path)
        except MossError as error:
            results.append(RecoveredCall(index or "", 0, 1, "failed", f"{error.code}: {error}"))
            continue
        if kept is None or index not in (None, kept.entry.index_name):
            continue
        entry, ref = kept.entry, kept.entry.segment
        changes = 0 if ref is None else ref.rows + ref.tombstones
        if entry.cloud != remote.where:
            told = entry.cloud or "the embedded cloud"
            results.append(RecoveredCall(entry.index_name, changes, 0, "elsewhere", told))
            continue
        try:
            encoded = None
            if ref is not None:
                decode = partial(
                    remote.cloud.decode, remote.project, entry.index_name, ref, kept.data
                )
                encoded = Encoded(await in_worker(decode), kept.data, ref)
            pushed = await remote.cloud.push(
                remote.project,
                entry.index_name,
                base_version=entry.base_version,
                base_segments=(),
                delta=encoded,
                doc_count=0 if ref is None else ref.rows,
                model_id=entry.model_id,
                dim=entry.dim,
                analyzer=entry.analyzer,
                on_conflict="merge",
                job_id=entry.job_id,
                ttl_s=entry.ttl_s,
                count=True,
            )
            await remote.cloud.report(remote.project, pushed.commit, job_id=entry.job_id)
        except MossError as error:
            if isinstance(error, CloudUnavailableError):
                remote.outage.noticed()
            told = f"{error.code}: {error}"
            results.append(RecoveredCall(entry.index_name, changes, 0, "failed", told))
            continue
        await in_writer(outbox.drop, path)
        results.append(RecoveredCall(entry.index_name, changes, 0, "pushed"))
    return results


async def find_waiting(remote: Remote, job_id: str) -> JobStatusResponse | None:
    """Tell of a push that waits in the outbox, by its job; None where there is none."""
    outbox = remote.outbox
    if outbox is None:
        return None
    for path in await in_writer(outbox.find, remote.project):
        with suppress(MossError):
            kept = await in_writer(outbox.read, path)
            if kept is not None and kept.entry.job_id == job_id:
                at = datetime.fromtimestamp(kept.entry.created_at_ms / 1000, UTC)
                return JobStatusResponse(job_id, "pending", 0.0, "outbox", None, at, at, None)
    return None
