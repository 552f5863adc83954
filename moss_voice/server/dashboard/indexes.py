"""Indexes and what is in them: listed, browsed, searched, and changed once that is confirmed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import pydantic
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from moss_voice.cloud.log import Commit, check_name
from moss_voice.errors import InvalidArgumentError
from moss_voice.server.answers import SearchRequest
from moss_voice.server.conditions import condition_of_text
from moss_voice.server.dashboard import listing
from moss_voice.server.dashboard.doors import Form, Visit, Visitor, VisitorsForm, WritersForm
from moss_voice.server.dashboard.showing import address, page
from moss_voice.server.names import NO_NAME
from moss_voice.server.refusals import Refusal
from moss_voice.server.routes import indexes as routes
from moss_voice.server.search import Found
from moss_voice.server.state import Here, State

__all__ = ["index_list", "router"]

router = APIRouter(prefix="/ui", include_in_schema=False)

# Documents of a page.
PER_PAGE: Final = 25
# Versions of a history.
_VERSIONS: Final = 200
_OPERATORS: Final = {
    "$eq": "is",
    "$ne": "is not",
    "$gt": "is above",
    "$gte": "is at least",
    "$lt": "is below",
    "$lte": "is at most",
    "$in": "is one of",
    "$nin": "is none of",
    "$near": "is near",
}


# --- what was asked for ----------------------------------------------------------------------------


def _number(text: str | None, *, most: int = 1 << 53) -> int:
    """Return a number of a page's own making; 0 for anything else."""
    return (
        min(int(text), most) if text and text.isascii() and text.isdigit() and len(text) < 17 else 0
    )


def _named(text: str) -> str:
    try:
        return check_name(text)
    except InvalidArgumentError:  # its message quotes the name
        raise Refusal(400, "invalid_argument", f"index: {NO_NAME}") from None


async def _head(here: State, project: str, index: str) -> Commit:
    commit = (await here.log.head(project, _named(index))).alive
    if commit is None:
        raise Refusal(404, "index_not_found", "there is no such index (any more)")
    return commit


# --- all indexes -----------------------------------------------------------------------------------


async def index_list(request: Request, here: State, visit: Visit) -> Response:
    """Show a project's indexes."""
    asked = request.query_params
    sort: listing.Sort = next((one for one in listing.SORTS if one == asked.get("sort")), "name")
    descending = asked.get("down") == "1"
    find = asked.get("find", "")[:200]
    listed = await listing.list_indexes(
        here.log,
        visit.project,
        find=find,
        sort=sort,
        descending=descending,
        offset=_number(asked.get("offset")),
    )
    return await page(
        request,
        "indexes.html",
        listed=listed,
        find=find,
        sort=sort if listed.whole else "name",
        descending=descending,
        deleted="deleted" in asked,
        size_of=listing.size_of,
    )


# --- one index -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What a search form holds, as it was typed."""

    query: str = ""
    alpha: str = "0.8"
    top_k: str = "10"
    min_score: str = ""
    filter: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether everything is to be shown."""
        return not self.query.strip() and not self.filter.strip()


@dataclass(frozen=True)
class _Shown:
    """What a page shows of an index: hits, or some of its documents."""

    documents: list[dict[str, Any]]
    total: int
    version: int
    offset: int = 0
    after: int | None = None
    found: Found | None = None

    @property
    def before(self) -> int | None:
        """Where the page before begins."""
        return max(0, self.offset - PER_PAGE) if self.offset > 0 else None


@router.get("/index")
async def index(request: Request, here: Here, visit: Visitor) -> Response:
    """Show an index and a page of its documents."""
    asked = request.query_params
    head = await _head(here, visit.project, asked.get("name", ""))
    shown = None
    if not head.key_ids:
        shown = await _browse(here, visit.project, head.index, "", _number(asked.get("offset")))
    return await _index_page(
        request,
        here,
        visit,
        head,
        shown,
        _Asked(),
        deleted=_number(asked.get("deleted")) if "deleted" in asked else None,
    )


@router.get("/index/find")
async def no_find() -> Response:
    """Lead back whoever opens the address of a form."""
    return RedirectResponse("/", 303)


@router.post("/index/find")
async def find(request: Request, here: Here, visit: Visitor, form: VisitorsForm) -> Response:
    """Show what a search finds, or the documents that pass a filter.

    By POST: what is looked for may be a caller's own words, which belong into no address.
    """
    head = await _head(here, visit.project, form.one("name"))
    asked = _Asked(
        **{
            # A form ends lines as mail does.
            name: form.one(name)[:20_000].replace("\r\n", "\n")
            for name in ("query", "alpha", "top_k", "min_score", "filter")
        }
    )
    shown, fault, status = None, "", 200
    try:
        if asked.query.strip():
            shown = await _search(here, visit.project, head.index, asked)
        else:
            offset = _number(form.one("offset"))
            shown = await _browse(here, visit.project, head.index, asked.filter, offset)
    except Refusal as refused:
        if refused.status not in (400, 413):
            raise
        fault, status = refused.message, refused.status
    return await _index_page(request, here, visit, head, shown, asked, fault=fault, status=status)


async def _index_page(
    request: Request,
    here: State,
    visit: Visit,
    head: Commit,
    shown: _Shown | None,
    asked: _Asked,
    *,
    fault: str = "",
    deleted: int | None = None,
    status: int = 200,
) -> Response:
    fields: dict[str, Any] = {}
    if not head.key_ids:
        fields = await here.library.fields(visit.project, head.index)
    return await page(
        request,
        "index.html",
        status=status,
        head=head,
        size=listing.size_of(head),
        versions=await here.log.count_versions(visit.project, head.index),
        shown=shown,
        asked=asked,
        fields=fields,
        operators=_OPERATORS,
        fault=fault,
        deleted=deleted,
        key_of=json.dumps,
    )


async def _browse(here: State, project: str, index: str, filter_: str, offset: int) -> _Shown:
    read = await here.library.page(
        project, index, offset=offset, limit=PER_PAGE, filter=filter_.strip() or None
    )
    documents = await asyncio.to_thread(lambda: [json.loads(line) for line in read.documents])
    return _Shown(documents, read.total, read.version, offset, read.next_offset)


async def _search(here: State, project: str, index: str, asked: _Asked) -> _Shown:
    condition_of_text(asked.filter)
    try:
        wanted = SearchRequest.model_validate(
            {
                "query": asked.query,
                "alpha": _typed(asked.alpha, 0.8),
                "top_k": _typed(asked.top_k, 10),
                "min_score": _typed(asked.min_score, None),
                "filter": json.loads(asked.filter) if asked.filter.strip() else None,
            }
        )
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise Refusal(400, "invalid_argument", f"{first['loc'][0]}: {first['msg']}") from None
    found = await here.searcher.search(project, index, wanted)

    def decode() -> list[dict[str, Any]]:
        return [
            {**match.document._asdict(), "score": match.score, "parts": match.parts}
            for match in found.matches
        ]

    documents = await asyncio.to_thread(decode)
    return _Shown(documents, len(documents), found.version, found=found)


def _typed(text: str, otherwise: float | None) -> float | int | str | None:
    """Return what somebody typed as the number that it is."""
    text = text.strip()
    if not text:
        return otherwise
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


# --- documents deleted -----------------------------------------------------------------------------


def _ids(form: Form) -> list[str]:
    """Return the ids that were chosen: in JSON, since a form changes the ends of lines in a value."""
    try:
        ids = [json.loads(text) for text in form.all("id")]
    except (ValueError, RecursionError):
        ids = [None]
    if not all(isinstance(id_, str) and id_ for id_ in ids):
        raise Refusal(400, "invalid_argument", "id: expected ids of documents")
    return list(dict.fromkeys(ids))


@router.post("/index/documents/confirm")
async def confirm_deletion(
    request: Request, here: Here, visit: Visitor, form: WritersForm
) -> Response:
    """Ask whether the chosen documents are to go."""
    head = await _head(here, visit.project, form.one("name"))
    ids = _ids(form)
    read = await here.library.page(visit.project, head.index, offset=0, limit=1, ids=ids[:1000])
    return await page(
        request,
        "confirm_documents.html",
        head=head,
        documents=[json.loads(line) for line in read.documents],
        chosen=len(ids),
        key_of=json.dumps,
    )


@router.post("/index/documents/delete")
async def delete_documents(here: Here, visit: Visitor, form: WritersForm) -> Response:
    """Delete the chosen documents."""
    name, ids = _named(form.one("name")), _ids(form)
    deleted = 0
    if ids:
        _, deleted = await here.library.delete(visit.project, name, ids)
    if deleted:
        here.metrics.commits.labels("documents").inc()
    return RedirectResponse(address("/ui/index", name=name, deleted=deleted), 303)


# --- versions --------------------------------------------------------------------------------------


@router.get("/index/history")
async def history(request: Request, here: Here, visit: Visitor) -> Response:
    """Show the versions that are kept, newest first."""
    asked = request.query_params
    head = await _head(here, visit.project, asked.get("name", ""))
    commits = await here.log.history(visit.project, head.index, most=_VERSIONS)
    return await page(
        request,
        "history.html",
        head=head,
        versions=[(commit, *listing.kind_of(commit)) for commit in reversed(commits)],
        size_of=listing.size_of,
        cut=len(commits) == _VERSIONS,
        restored=_number(asked.get("restored")),
    )


@router.get("/index/restore")
async def confirm_restore(request: Request, here: Here, visit: Visitor) -> Response:
    """Ask whether an older version is to come back."""
    if not visit.writes:
        raise Refusal(403, "permission_denied", "this key may only read")
    asked = request.query_params
    head = await _head(here, visit.project, asked.get("name", ""))
    version = _number(asked.get("version"))
    old = await here.log.read_commit(visit.project, head.index, version) if version else None
    if old is None or old.deleted or version < head.purged:
        raise Refusal(404, "not_found", "there is no such version (any more)")
    return await page(request, "confirm_restore.html", head=head, old=old, size_of=listing.size_of)


@router.post("/index/restore")
async def restore(here: Here, visit: Visitor, form: WritersForm) -> Response:
    """Make a new version with the documents of an older one."""
    name, version = _named(form.one("name")), _number(form.one("version"))
    # A segment that the newest version does not name passes through memory.
    async with here.large_bodies:
        commit = await here.cloud.restore(visit.project, name, version)
    if commit.restored == version:
        here.metrics.commits.labels("restore").inc()
        here.hub.notify(visit.project, name, commit.version)
    return RedirectResponse(address("/ui/index/history", name=name, restored=version), 303)


# --- the index itself deleted ----------------------------------------------------------------------


async def _deletion(
    request: Request, here: State, visit: Visit, name: str, *, fault: str = "", status: int = 200
) -> Response:
    if not visit.writes:
        raise Refusal(403, "permission_denied", "this key may only read")
    head = await _head(here, visit.project, name)
    return await page(
        request,
        "confirm_index.html",
        status=status,
        head=head,
        size=listing.size_of(head),
        versions=await here.log.count_versions(visit.project, head.index),
        fault=fault,
    )


@router.get("/index/delete")
async def confirm_index_deletion(request: Request, here: Here, visit: Visitor) -> Response:
    """Ask for the index's name before it is deleted."""
    return await _deletion(request, here, visit, request.query_params.get("name", ""))


@router.post("/index/delete")
async def delete_index(request: Request, here: Here, visit: Visitor, form: WritersForm) -> Response:
    """Delete an index whose name was typed."""
    name = _named(form.one("name"))
    if form.one("typed").strip() != name.strip():
        fault = "This is not the name of the index: nothing was deleted."
        return await _deletion(request, here, visit, name, fault=fault, status=400)
    await routes.delete_index(here, visit.access, visit.project, name)
    return RedirectResponse("/?deleted=1", 303)
