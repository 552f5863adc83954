"""Two sessions on one cloud, doing anything in any order, against a dict.

The model is what the documentation says: per document the last write wins, by the order of the writes;
`replace` makes the cloud what the session is, `merge` joins both, `error` refuses; whoever opens the
index has what the cloud has, in the same order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from moss_voice.cloud.cloud import open_cloud
from moss_voice.errors import ConflictError, IndexNotFoundError
from moss_voice.session import SessionIndex
from moss_voice.types import DocumentInfo, GetDocumentsOptions, MutationOptions, QueryOptions
from moss_voice.versions import Remote

T = TypeVar("T")

NAME, FAQ = "calls", "faq"
VECTORS = ((1.0, 0.0, 0.0), (0.6, 0.8, 0.0), (0.0, -0.6, 0.8), (-1.0, 0.0, 0.0))

ids = st.sampled_from([f"d{n}" for n in range(4)])
values = st.tuples(st.sampled_from(["hotel", "train", "card"]), st.sampled_from(VECTORS))
who = st.sampled_from([0, 1])


class Entry(NamedTuple):
    written: int
    text: str
    vector: tuple[float, ...]


@dataclass
class State:
    """Documents in order, and what was deleted when."""

    docs: dict[str, Entry] = field(default_factory=dict)
    dead: dict[str, int] = field(default_factory=dict)

    def copy(self) -> State:
        return State(dict(self.docs), dict(self.dead))

    def put(self, id_: str, entry: Entry) -> None:
        newest = max(self.docs[id_].written if id_ in self.docs else -1, self.dead.get(id_, -1))
        if entry.written > newest:
            self.docs[id_] = entry

    def delete(self, id_: str, at: int) -> None:
        self.dead[id_] = max(at, self.dead.get(id_, -1))
        if id_ in self.docs and self.docs[id_].written <= at:
            del self.docs[id_]

    def merged(self, other: State, changed: Iterable[str]) -> State:
        """Return this with what changed in the other."""
        result = self.copy()
        for id_ in changed:
            if id_ in other.dead:
                result.delete(id_, other.dead[id_])
        for id_, entry in other.docs.items():
            if id_ in changed:
                result.put(id_, entry)
        return result

    @property
    def texts(self) -> dict[str, str]:
        return {id_: entry.text for id_, entry in self.docs.items()}


@dataclass
class Side:
    """A session, and what it should hold."""

    session: SessionIndex
    state: State
    base: int = 0
    pending: set[str] = field(default_factory=set)
    edited: bool = False


class Sessions(RuleBasedStateMachine):
    """Two sessions of one index, and an index of questions that either may load."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # A clock that no two writes share: the order of the writes is the order of the steps.
        seconds = count(int(time.time()))
        self.patch.setattr("time.time_ns", lambda: next(seconds) * 1_000_000_000)
        self.patch.setattr("moss_voice.index.SWEEP_ROWS", 3)
        self.patch.setattr("moss_voice.cloud.log.MAX_SEGMENTS", 3)
        self.runner = asyncio.Runner()
        self.remote = Remote(open_cloud(f"memory://{uuid4().hex}"), "default", None)
        self.steps = count(1)
        self.cloud, self.version = State(), 0
        self.faq: State | None = None

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    @initialize()
    def open_both(self) -> None:
        self.sides = [self._opened(), self._opened()]

    def _opened(self) -> Side:
        session = self.run(SessionIndex.open(self.remote, NAME, "custom"))
        return Side(session, self.cloud.copy(), self.version)

    def teardown(self) -> None:
        for side in getattr(self, "sides", []):
            self.run(side.session.close())
        self.runner.close()
        self.patch.undo()

    # --- writing ---

    @rule(at=who, docs=st.lists(st.tuples(ids, values), max_size=3), upsert=st.booleans())
    def add(self, at: int, docs: list[tuple[str, Any]], upsert: bool) -> None:
        side = self.sides[at]
        step = next(self.steps)
        added = updated = 0
        for id_, (text, vector) in docs:
            if id_ not in side.state.docs:
                added += 1
            elif not upsert:
                continue
            else:
                updated += 1
            side.state.docs[id_] = Entry(step, text, vector)
            side.pending.add(id_)
        infos = [DocumentInfo(id_, text, None, vector) for id_, (text, vector) in docs]
        counts = self.run(side.session.add_docs(infos, MutationOptions(upsert)))
        assert counts == (added, updated)
        side.edited |= bool(added or updated)

    @rule(at=who, gone=st.lists(ids, max_size=3))
    def delete(self, at: int, gone: list[str]) -> None:
        side = self.sides[at]
        step = next(self.steps)
        there = {id_ for id_ in gone if id_ in side.state.docs}
        for id_ in there:
            side.state.delete(id_, step)
        side.pending |= there
        assert self.run(side.session.delete_docs(gone)) == len(there)
        side.edited |= bool(there)

    @rule(at=who, id_=ids, value=values)
    def delete_and_add_again(self, at: int, id_: str, value: Any) -> None:
        self.delete(at, [id_])
        self.add(at, [(id_, value)], upsert=False)

    # --- the cloud ---

    @rule(at=who, on_conflict=st.sampled_from(["replace", "merge", "error"]))
    def push(self, at: int, on_conflict: Any) -> None:
        side = self.sides[at]
        if side.session.dim is None:
            return
        moved = side.base != self.version
        if moved and on_conflict == "error":
            with pytest.raises(ConflictError) as caught:
                self.run(side.session.push_index("error"))
            assert (caught.value.base_version, caught.value.head_version) == (
                side.session.version,
                self._head(),
            )
            return
        result = self.run(side.session.push_index(on_conflict))
        if not moved or on_conflict == "merge":
            after = self.cloud.merged(side.state, side.pending)
        else:
            after = side.state.copy()
        if side.pending or not self.version or (moved and on_conflict == "replace"):
            # Every change has a number of its own; joined segments do not count.
            self.version = result.version
        self.cloud, side.state, side.base = after.copy(), after, self.version
        side.pending, side.edited = set(), False
        assert result.doc_count == len(after.docs)
        assert (result.merged_from is not None) == moved
        # Who opens it now has what this session has, in the same order.
        again = self._opened()
        assert self._texts(again) == self.cloud.texts
        assert list(self._texts(again)) == list(self._texts(side))
        index, ours = again.session._index, side.session._index
        assert index is not None
        assert ours is not None
        index._check()
        some = list(after.docs)
        np.testing.assert_array_equal(index.vectors_of(some), ours.vectors_of(some))
        head = self.run(self.remote.cloud.read_head("default", NAME))
        assert head is not None
        assert head.doc_count == len(after.docs)

    def _head(self) -> int:
        head = self.run(self.remote.cloud.read_head("default", NAME))
        return head.version if head is not None else 0

    @rule(at=who)
    def reopen(self, at: int) -> None:
        self.run(self.sides[at].session.close())
        self.sides[at] = self._opened()

    @rule(at=who)
    def refresh(self, at: int) -> None:
        """Bring in what the cloud has, unless there are edits of one's own."""
        side = self.sides[at]
        newer = side.base != self.version and not side.edited
        if self.run(side.session.refresh()):
            assert not side.edited
        else:
            assert not newer
        if newer:
            state = self.cloud.merged(side.state, side.pending)
            kept = {id_ for id_ in side.pending if state.docs.get(id_) == side.state.docs.get(id_)}
            side.state, side.base, side.pending = state, self.version, kept

    @rule(docs=st.dictionaries(ids, values, min_size=1, max_size=3))
    def store_faq(self, docs: dict[str, Any]) -> None:
        """Somebody else stores the index of questions anew."""
        step = next(self.steps)
        self.faq = State({id_: Entry(step, f"faq {text}", v) for id_, (text, v) in docs.items()})
        infos = [DocumentInfo(i, e.text, None, e.vector) for i, e in self.faq.docs.items()]

        async def store() -> None:
            session = await SessionIndex.open(self.remote, FAQ, "custom")
            await session.delete_docs([doc.id for doc in await session.get_docs()])
            await session.add_docs(infos)
            await session.push_index()
            await session.close()

        self.run(store())

    @rule(at=who)
    def load_faq(self, at: int) -> None:
        side = self.sides[at]
        if self.faq is None:
            with pytest.raises(IndexNotFoundError):
                self.run(side.session.load_index(FAQ))
            return
        step = next(self.steps)
        assert self.run(side.session.load_index(FAQ)) == len(self.faq.docs)
        for id_, entry in self.faq.docs.items():
            side.state.docs[id_] = entry._replace(written=step)
        side.pending |= self.faq.docs.keys()

    # --- reading ---

    def _texts(self, side: Side) -> dict[str, str]:
        return {doc.id: doc.text for doc in side.session.documents()}

    @invariant()
    def sessions_hold_what_they_should(self) -> None:
        for side in getattr(self, "sides", []):
            if side.session._index is not None:
                side.session._index._check()
            assert self._texts(side) == side.state.texts
            assert side.session.doc_count == len(side.state.docs)
            assert side.session.unpushed == len(side.pending)
            self._query(side)
            self._get(side)

    def _query(self, side: Side) -> None:
        top_k = 1 + len(side.state.docs) // 2
        vector = VECTORS[len(side.pending) % len(VECTORS)]
        found = self.run(side.session.query("", QueryOptions(vector, top_k, 1.0))).docs
        scores = {
            id_: (1 + float(np.dot(vector, entry.vector))) / 2
            for id_, entry in side.state.docs.items()
        }
        best = sorted(scores.values(), reverse=True)[:top_k]
        assert [hit.score for hit in found] == pytest.approx(best, abs=1e-6)
        for hit in found:
            assert hit.score == pytest.approx(scores[hit.id], abs=1e-6)
            assert hit.text == side.state.docs[hit.id].text

    def _get(self, side: Side) -> None:
        wanted = ["d2", "nobody", "d0", "d1"]
        found = self.run(side.session.get_docs(GetDocumentsOptions(wanted)))
        expected = [(i, side.state.docs[i].text) for i in wanted if i in side.state.docs]
        assert [(doc.id, doc.text) for doc in found] == expected


Sessions.TestCase.settings = settings(
    max_examples=50, stateful_step_count=20, deadline=None, print_blob=True
)
test_sessions_agree_with_the_model = Sessions.TestCase
