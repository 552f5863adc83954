"""Indexes as a page lists them: of a project with thousands only those that a page shows are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote

from moss_voice.cloud.log import Commit
from moss_voice.cloud.pacing import together
from moss_voice.cloud.store import ObjectLog

__all__ = ["PER_PAGE", "SORTS", "Listed", "Row", "Sort", "kind_of", "list_indexes", "size_of"]

PER_PAGE: Final = 50
# Of more indexes only the names are known before a page is chosen.
_ALL: Final = 500

Sort = Literal["name", "documents", "size", "pushed"]
SORTS: Final[tuple[Sort, ...]] = ("name", "documents", "size", "pushed")


class Row(NamedTuple):
    """One index in a list."""

    commit: Commit
    versions: int


@dataclass(frozen=True)
class Listed:
    """A page of indexes.

    Attributes:
        total: How many there are; where not `whole`, deleted ones count too.
        whole: False where there are too many to be sorted by anything but their names.
    """

    rows: list[Row]
    total: int
    whole: bool
    offset: int

    @property
    def before(self) -> int | None:
        """Where the page before begins."""
        return max(0, self.offset - PER_PAGE) if self.offset > 0 else None

    @property
    def after(self) -> int | None:
        """Where the next page begins."""
        return self.offset + PER_PAGE if self.offset + PER_PAGE < self.total else None


async def list_indexes(
    log: ObjectLog, project: str, *, find: str, sort: Sort, descending: bool, offset: int
) -> Listed:
    """Return a page of a project's indexes.

    Args:
        log: Where they are.
        project: The project.
        find: A part of the name, in any case; blank for all.
        sort: By what, if that is known of all.
        descending: The other way round.
        offset: How many to pass over.
    """
    folders = await log.folders(project)
    whole = len(folders) <= _ALL
    if not whole:
        wanted = find.casefold()
        named = [(_name_in(folder), folder) for folder in folders]
        chosen = sorted((n, f) for n, f in named if wanted in n.casefold())
        if descending:
            chosen.reverse()
        heads = await log.heads_in([f for _, f in chosen[offset : offset + PER_PAGE]])
        commits = [head.alive for head in heads]
        rows = await _rows(log, project, [commit for commit in commits if commit is not None])
        return Listed(rows, len(chosen), False, offset)
    heads = await log.heads_in(folders)
    wanted = find.casefold()
    there = [head.alive for head in heads if head.alive is not None]
    there = [commit for commit in there if wanted in commit.index.casefold()]
    there.sort(key=lambda commit: commit.index)
    if sort != "name":
        there.sort(key=lambda commit: _key(commit, sort), reverse=descending)
    elif descending:
        there.reverse()
    rows = await _rows(log, project, there[offset : offset + PER_PAGE])
    return Listed(rows, len(there), True, offset)


async def _rows(log: ObjectLog, project: str, commits: list[Commit]) -> list[Row]:
    counts = await together(log.count_versions(project, commit.index) for commit in commits)
    return [Row(commit, count) for commit, count in zip(commits, counts, strict=True)]


def _name_in(folder: str) -> str:
    """Return what is known of an index's name without reading it: of a long one its beginning."""
    return unquote(folder.rpartition("/")[2].partition("~")[0])


def _key(commit: Commit, sort: Sort) -> Any:
    return {
        "name": commit.index,
        "documents": commit.doc_count,
        "size": size_of(commit),
        "pushed": commit.updated_at,
    }[sort]


def size_of(commit: Commit) -> int:
    """Return how many bytes a version takes up."""
    return sum(ref.size_bytes for ref in commit.segments)


def kind_of(commit: Commit) -> tuple[str, int | None]:
    """Return what made a version, and the version that it brought back or discarded."""
    if commit.restored is not None:
        return "restore", commit.restored
    if commit.changed < commit.version:
        return "upkeep", None
    if commit.replaced is not None:
        return "replace", commit.replaced
    return "push", None
