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
from moss_voice.server.dashboard.doors import Visit, Visitor, VisitorsForm
from moss_voice.server.dashboard.showing import page
from moss_voice.server.names import NO_NAME
from moss_voice.server.refusals import Refusal
from moss_voice.server.search import Found
from moss_voice.server.state import Here, State

__all__ = ["index_list", "router"]

router = APIRouter(prefix="/ui", include_in_schema=False)

# Documents of a page.
PER_PAGE: Final = 25
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
            name: form.one(name)[:20_000]
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
        per_page=PER_PAGE,
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
