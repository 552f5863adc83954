"""Segments, commits and requests for the tests of the server."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from moss_voice.cloud.log import Commit, Segment, SegmentRef, encode_segment
from moss_voice.keywords import Postings
from moss_voice.text import ANALYZER, term_ids

DIM = 4
MODEL = "test-model"


def document(id_: str, text: str = "my printer is on fire", **more: Any) -> bytes:
    """Return a line as a segment holds it."""
    return json.dumps({"id": id_, "text": text, **more}, separators=(",", ":")).encode()


def segment(
    *ids: str,
    lines: Sequence[bytes] | None = None,
    tombstones: Mapping[str, int] | None = None,
    at: int = 1000,
    dim: int = DIM,
    model_id: str = MODEL,
) -> Segment:
    """Return a sound segment of these documents; others' lines where given."""
    lines = [document(id_) for id_ in ids] if lines is None else lines
    terms = [term_ids("my printer is on fire")] * len(ids)
    rng = np.random.default_rng(zlib.crc32("/".join(ids).encode()))
    vectors = rng.standard_normal((len(ids), dim))
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return Segment(
        model_id=model_id,
        analyzer=ANALYZER,
        ids=ids,
        documents=lines,
        written_at=np.full(len(ids), at, np.int64),
        vectors=vectors.astype(np.float32),
        postings=Postings.of(terms),
        lengths=np.array([t.size for t in terms], np.int32),
        tombstones=tombstones or {},
    )


@dataclass(frozen=True)
class Made:
    """A segment as it is sent."""

    data: bytes
    ref: SegmentRef


def made(*ids: str, **options: Any) -> Made:
    """Return a segment, encoded; options as of `segment`."""
    whole = segment(*ids, **options)
    data = encode_segment(whole)
    return Made(data, SegmentRef.of(data, rows=len(ids), tombstones=len(whole.tombstones)))


def commit(index: str, *refs: SegmentRef, on: Commit | None = None, **fields: Any) -> Commit:
    """Return the next version of an index, on another."""
    now = datetime.now(UTC)
    version = (on.version if on else 0) + 1
    new = Commit(
        index=index,
        index_id=on.index_id if on else "id-1",
        version=version,
        parent=version - 1,
        changed=version,
        replaced=None,
        model_id=MODEL,
        dim=DIM,
        analyzer=ANALYZER,
        segments=((*on.segments, *refs) if on else refs),
        doc_count=sum(ref.rows for ref in refs) + (on.doc_count if on else 0),
        created_at=on.created_at if on else now,
        updated_at=now,
        job_id=f"job-{version}",
    )
    return replace(new, **fields)


class Door:
    """One project behind a server, as one key sees it."""

    def __init__(self, url: str, project: str, key: str | None) -> None:
        self.project = project
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=30)

    def close(self) -> None:
        self.http.close()

    def path(self, index: str | None = None, rest: str = "") -> str:
        """Return a path below the project, or below one of its indexes."""
        path = f"/v1/projects/{_component(self.project)}"
        if index is not None:
            path += f"/indexes/{_component(index)}"
        return path + rest

    def put_segment(self, index: str, sent: Made) -> httpx.Response:
        return self.http.put(self.path(index, f"/segments/{sent.ref.sha256}"), content=sent.data)

    def put_commit(self, new: Commit) -> httpx.Response:
        return self.http.put(self.path(new.index, f"/commits/{new.version}"), content=new.encode())

    def push(self, index: str, *ids: str, on: Commit | None = None) -> Commit:
        """Push a version; returns its commit."""
        sent = made(*ids)
        assert self.put_segment(index, sent).status_code in (200, 201)
        new = commit(index, sent.ref, on=on)
        answer = self.put_commit(new)
        assert answer.status_code == 201, answer.text
        return new


def _component(name: str) -> str:
    # Dots too: clients resolve them.
    return quote(name, safe="").replace(".", "%2E")


def code(answer: httpx.Response) -> str:
    """Return the code of an error, once its shape is what the contract says."""
    fields = answer.json()
    assert fields.keys() == {"error"}
    assert fields["error"].keys() == {"code", "message"}
    found: str = fields["error"]["code"]
    return found
