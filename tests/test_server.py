"""What the server promises on each of its paths, tried on a real process."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from moss_voice.cloud.cloud import Cloud
from moss_voice.cloud.log import Segment, decode_commit, decode_segment, encode_segment, resolve
from moss_voice.cloud.names import encode_name
from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.sealing import Keyring, new_key
from moss_voice.cloud.store import ObjectLog
from moss_voice.index import decode_document
from moss_voice.types import JobStatusResponse
from tests.s3_server import s3_server
from tests.server_process import Server, serve
from tests.server_samples import DIM, MODEL, Door, code, commit, document, made, segment


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    project, key = server.project()
    door = Door(server.url, project, key)
    yield door
    door.close()


def stored(server: Server) -> list[str]:
    """Return the paths of all that is stored, but for keys."""
    root = Path(server.store)
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if "~keys" not in path.parts)


def log_of(server: Server) -> ObjectLog:
    return ObjectLog(open_objects(server.store))


# --- commits and segments --------------------------------------------------------------------------


def test_a_push_is_read_back_as_it_was_sent(server: Server, door: Door) -> None:
    """Segments and commits come back byte for byte, and the store holds what a client would have put."""
    sent = made("a", "b")
    answer = door.put_segment("call-42", sent)
    assert answer.status_code == 201
    assert answer.json() == {
        "sha256": sent.ref.sha256, "size_bytes": len(sent.data), "sent": True
    }  # fmt: skip
    new = commit("call-42", sent.ref)
    answer = door.put_commit(new)
    assert (answer.status_code, answer.json()) == (201, {"version": 1})

    segment_path = door.path("call-42", f"/segments/{sent.ref.sha256}")
    answer = door.http.get(segment_path)
    assert answer.content == sent.data
    assert answer.headers["content-type"] == "application/octet-stream"
    answer = door.http.get(door.path("call-42", "/commits/1"))
    assert answer.content == new.encode()
    assert door.http.get(door.path("call-42", "/head")).json() == {
        "commit": json.loads(new.encode()), "newest": 1
    }  # fmt: skip
    assert door.http.get(door.path("call-42", "/commits")).json() == {
        "commits": [json.loads(new.encode())]
    }
    assert door.http.get(door.path(rest="/indexes")).json() == {
        "indexes": [json.loads(new.encode())]
    }
    folder = f"{door.project}/call-42"
    assert [path for path in stored(server) if path.startswith(folder)] == [
        f"{folder}/log/000000000001.json",
        f"{folder}/segments/{sent.ref.sha256}",
    ]
    assert asyncio.run(log_of(server).head(door.project, "call-42")).commit == new


def test_a_segment_tells_when_it_was_stored(server: Server, door: Door) -> None:
    """HEAD tells the store's own time to the microsecond, and 404 where there is none."""
    sent = made("a")
    door.put_segment("call", sent)
    answer = door.http.head(door.path("call", f"/segments/{sent.ref.sha256}"))
    at = asyncio.run(log_of(server).segment_stored_at(door.project, "call", sent.ref.sha256))
    assert at is not None
    assert datetime.fromisoformat(answer.headers["x-stored-at"]) == at
    assert parsedate_to_datetime(answer.headers["last-modified"]) == at.replace(microsecond=0)
    assert answer.content == b""
    answer = door.http.head(door.path("call", f"/segments/{'0' * 64}"))
    assert (answer.status_code, answer.content) == (404, b"")
    listed = door.http.get(door.path("call", "/segments")).json()["segments"]
    assert [(s["sha256"], s["size_bytes"]) for s in listed] == [(sent.ref.sha256, len(sent.data))]
    assert datetime.fromisoformat(listed[0]["at"]) == at


def test_a_segment_that_is_there_young_is_not_sent_again(door: Door) -> None:
    """The same bytes a second time are 200 and no second writing."""
    sent = made("a")
    assert door.put_segment("call", sent).status_code == 201
    answer = door.put_segment("call", sent)
    assert (answer.status_code, answer.json()["sent"]) == (200, False)


def test_the_head_is_sent_once(door: Door) -> None:
    """A head that the client has is a 304 without a body, until somebody pushes."""
    path = door.path("call", "/head")
    tags = []
    new = None
    for ids in ("a", "b"):
        before = door.http.get(path)
        tags.append(before.headers["etag"])
        for known in (tags[-1], f'"x", {tags[-1]}', f"W/{tags[-1]}", "*"):
            answer = door.http.get(path, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == tags[-1]
        new = door.push("call", ids, on=new)
        answer = door.http.get(path, headers={"If-None-Match": tags[-1]})
        assert answer.status_code == 200
        assert answer.json()["newest"] == new.version
    assert len(set(tags)) == 2


def test_of_many_that_commit_one_version_one_wins(server: Server, door: Door) -> None:
    """Exactly one of many different commits of one number is made; the others are told by a 409."""
    sent = made("a")
    door.put_segment("race", sent)
    tries = [commit("race", sent.ref, job_id=f"job-{n}") for n in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(door.put_commit, tries))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201, *[409] * 23]
    assert {code(answer) for answer in answers if answer.status_code == 409} == {"conflict"}
    winner = tries[[answer.status_code for answer in answers].index(201)]
    assert asyncio.run(log_of(server).head(door.project, "race")).commit == winner


def test_a_commit_whose_answer_was_lost_is_there(door: Door) -> None:
    """The very commit that is there is a 200, also once others have pushed on it; another is a 409."""
    first = door.push("call", "a")
    assert door.put_commit(first).status_code == 200
    door.push("call", "b", on=first)
    assert door.put_commit(first).status_code == 200
    other = door.put_commit(replace(first, job_id="another"))
    assert (other.status_code, code(other)) == (409, "conflict")


def test_a_commit_is_the_next_one(door: Door) -> None:
    """A commit that leaves a gap, or was planned on another version than the newest, is a 409."""
    first = door.push("call", "a")
    for version, parent in ((3, 1), (3, 2), (2, 0), (10**11, 1)):
        skipped = replace(commit("call", on=first), version=version, parent=parent)
        answer = door.put_commit(replace(skipped, changed=2))
        assert (answer.status_code, code(answer)) == (409, "conflict"), (version, parent)
    assert door.http.get(door.path("call", "/head")).json()["newest"] == 1


def test_a_commit_names_stored_segments_and_tells_the_truth_of_them(
    server: Server, door: Door
) -> None:
    """What a commit says of a segment is what the segment holds, or the commit is refused."""
    sent = made("a", "b", tombstones={"c": 5})
    absent = door.put_commit(commit("call", sent.ref))
    assert (absent.status_code, code(absent)) == (409, "conflict")
    door.put_segment("call", sent)
    before = stored(server)
    lies: list[dict[str, Any]] = [
        {"size_bytes": len(sent.data) + 1},
        {"rows": 1},
        {"rows": 3},
        {"tombstones": 0},
        {"key_id": "0123456789abcdef"},
    ]
    for lie in lies:
        answer = door.put_commit(commit("call", replace(sent.ref, **lie), doc_count=1))
        assert (answer.status_code, code(answer)) == (400, "invalid_argument"), lie
    for wrong in ({"model_id": "other"}, {"dim": DIM + 1}):
        answer = door.put_commit(replace(commit("call", sent.ref), **wrong))
        assert (answer.status_code, code(answer)) == (400, "model_mismatch"), wrong
    assert stored(server) == before
    assert door.put_commit(commit("call", sent.ref)).status_code == 201


def test_a_commit_keeps_what_the_index_is(door: Door) -> None:
    """Model, dimension and id of an index stay, and what was purged stays purged."""
    first = door.push("call", "a")
    for wrong, expected in (
        ({"model_id": "other", "segments": ()}, "model_mismatch"),
        ({"dim": 5, "segments": ()}, "model_mismatch"),
        ({"index_id": "other"}, "invalid_argument"),
    ):
        answer = door.put_commit(replace(commit("call", on=first), doc_count=0, **wrong))
        assert (answer.status_code, code(answer)) == (400, expected), wrong
    purging = commit("call", on=first, purged=2)
    assert door.put_commit(purging).status_code == 201
    answer = door.put_commit(commit("call", on=purging, purged=0))
    assert (answer.status_code, code(answer)) == (400, "invalid_argument")


def test_a_commit_belongs_where_it_is_sent(door: Door) -> None:
    """Another index, another number, a deletion or a time in the future is a 400."""
    sent = made("a")
    door.put_segment("call", sent)
    good = commit("call", sent.ref)
    later = datetime.now(UTC) + timedelta(days=2)
    for path, body in (
        (door.path("other", "/commits/1"), good),
        (door.path("call", "/commits/2"), good),
        (door.path("call", "/commits/1"), replace(good, deleted=True, segments=(), doc_count=0)),
        (door.path("call", "/commits/1"), replace(good, updated_at=later)),
        (door.path("call", "/commits/1"), replace(good, created_at=later)),
    ):
        answer = door.http.put(path, content=body.encode())
        assert (answer.status_code, code(answer)) == (400, "invalid_argument"), path


def test_a_deleted_index_is_gone_and_its_numbers_go_on(door: Door) -> None:
    """After a DELETE there is no index, the head tells the deletion, and the next version goes on."""
    door.push("call", "a")
    assert door.http.delete(door.path("call")).status_code == 204
    for answer in (door.http.get(door.path("call")), door.http.delete(door.path("call"))):
        assert (answer.status_code, code(answer)) == (404, "index_not_found")
    head = door.http.get(door.path("call", "/head")).json()
    assert head["newest"] == 2
    assert head["commit"]["deleted"] is True
    assert door.http.get(door.path("call", "/commits")).json() == {"commits": []}
    assert door.http.get(door.path(rest="/indexes")).json() == {"indexes": []}
    deletion = decode_commit(json.dumps(head["commit"]).encode())
    assert door.push("call", "b", on=replace(deletion, index_id="id-2")).version == 3
    assert door.http.get(door.path("call")).json()["id"] == "id-2"


def test_an_unnamed_segment_goes_once_it_is_old(server: Server, door: Door) -> None:
    """DELETE of a segment and a collection leave alone what is young or named."""
    first = door.push("call", "a")
    lone = made("z")
    door.put_segment("call", lone)
    for sha256, gone in (
        (first.segments[0].sha256, False), (lone.ref.sha256, False), ("0" * 64, True)
    ):  # fmt: skip
        answer = door.http.delete(door.path("call", f"/segments/{sha256}"))
        assert answer.json() == {"gone": gone}
    assert door.http.post(door.path("call", "/collect"), json={}).json() == {"removed": 0}
    answer = door.http.post(door.path("call", "/collect"), json={"grace_s": 60})
    assert (answer.status_code, code(answer)) == (400, "invalid_argument")
    assert door.http.head(door.path("call", f"/segments/{lone.ref.sha256}")).status_code == 200


def test_jobs_are_kept(door: Door) -> None:
    """A job that was put is got, under its own id alone."""
    at = datetime(2026, 11, 20, tzinfo=UTC)
    job = JobStatusResponse("job-1", "running", 0.5, "uploading", None, at, at, None)
    body = {**{f: getattr(job, f) for f in job.__dataclass_fields__}}
    for name in ("created_at", "updated_at"):
        body[name] = at.isoformat()
    path = door.path(rest="/jobs/job-1")
    assert code(door.http.get(path)) == "job_not_found"
    assert door.http.put(path, json=body).status_code == 204
    answer = door.http.get(path).json()
    assert answer["progress"] == 0.5
    assert datetime.fromisoformat(answer["created_at"]) == at
    for wrong in ({"job_id": "job-2"}, {"progress": 2}, {"status": "odd"}, {"more": 1}):
        answer = door.http.put(path, json={**body, **wrong})
        assert (answer.status_code, code(answer)) == (400, "invalid_argument"), wrong


# --- encrypted -------------------------------------------------------------------------------------


def test_a_sealed_index_is_stored_and_not_read(server: Server, door: Door) -> None:
    """Sealed segments pass by their envelope; what would need the key is a 409 of its own."""
    key = Keyring([new_key()]).current
    data = key.seal(encode_segment(segment("a")), project=door.project, index="call")
    sent = made("a")
    ref = replace(sent.ref.of(data, rows=1, tombstones=0), key_id=key.id)
    path = door.path("call", f"/segments/{ref.sha256}")
    assert door.http.put(path, content=data).status_code == 201
    wrong = door.put_commit(commit("call", replace(ref, key_id="0" * 16)))
    assert (wrong.status_code, code(wrong)) == (400, "invalid_argument")
    assert door.put_commit(commit("call", ref)).status_code == 201
    assert door.http.get(door.path("call")).json()["encrypted"] is True
    for answer in (
        door.http.get(door.path("call", "/documents")),
        door.http.post(door.path("call", "/documents/delete"), json={"ids": ["a"]}),
        door.http.post(
            door.path("call", "/documents"),
            json={
                "model_id": MODEL,
                "documents": [{"id": "b", "text": "t", "embedding": [1] * DIM}],
            },
        ),
    ):
        assert (answer.status_code, code(answer)) == (409, "encrypted")
    cut = data[:60]
    answer = door.http.put(
        door.path("call", f"/segments/{ref.of(cut, rows=0, tombstones=0).sha256}"), content=cut
    )
    assert (answer.status_code, code(answer)) == (400, "corrupt_data")


# --- documents -------------------------------------------------------------------------------------


def test_documents_are_what_a_client_reads(server: Server, door: Door) -> None:
    """Merges and deletions over REST make the index that a client would load, whatever their order."""
    rng = random.Random(7)
    expected: dict[str, dict[str, Any]] = {}
    version = 0
    for step in range(25):
        ids = rng.sample("abcdefghij", rng.randint(1, 4))
        if expected and rng.random() < 0.35:
            answer = door.http.post(door.path("faq", "/documents/delete"), json={"ids": ids})
            assert answer.status_code == 200
            there = [id_ for id_ in ids if id_ in expected]
            assert answer.json()["deleted"] == len(there)
            for id_ in there:
                del expected[id_]
        else:
            docs = [
                {
                    "id": id_,
                    "text": f"text {step} \u00e9\U0001f600 of {id_}",
                    "metadata": {"step": step, "on": True, "share": 0.5, "word": "w"},
                    "payload": {"deep": [step, None]},
                }
                for id_ in ids
            ]
            sent = [{**doc, "embedding": [rng.gauss(0, 3) for _ in range(DIM)]} for doc in docs]
            answer = door.http.post(
                door.path("faq", "/documents"), json={"model_id": MODEL, "documents": sent}
            )
            assert answer.status_code == 201, answer.text
            expected.update({str(doc["id"]): doc for doc in docs})
            job = door.http.get(door.path(rest=f"/jobs/{answer.json()['job_id']}"))
            assert job.json()["status"] == "completed"
        assert answer.json()["doc_count"] == len(expected)
        assert answer.json()["version"] >= version
        version = answer.json()["version"]
        page = door.http.get(door.path("faq", "/documents?limit=1000")).json()
        assert page["documents"] == list(expected.values())
        assert (page["total"], page["next_offset"]) == (len(expected), None)

    assert _as_a_client_reads(server, door.project, "faq") == list(expected.values())


def _as_a_client_reads(server: Server, project: str, index: str) -> list[dict[str, Any]]:
    async def read() -> list[Segment]:
        cloud = Cloud(log_of(server))
        head = await cloud.read_head(project, index)
        assert head is not None
        data = [await cloud.fetch_segment(project, index, ref) for ref in head.segments]
        return [decode_segment(part, model_id=MODEL, dim=DIM) for part in data]

    segments = asyncio.run(read())
    for part in segments:
        assert np.allclose(np.linalg.norm(part.vectors, axis=1), 1.0)
    found = resolve(segments)
    rows = sorted(
        (int(ordinals[row]), decode_document(part.documents[row])._asdict())
        for part, live, ordinals in zip(segments, found.live, found.ordinals, strict=True)
        for row in live.nonzero()[0].tolist()
    )
    return [row for _, row in rows]


def test_documents_come_in_pages(door: Door) -> None:
    """Pages follow one another by `next_offset`; by id they come in the order asked, unknown ones not."""
    docs = [{"id": f"d{n:03}", "text": f"t{n}", "embedding": [1, n, 0, 0]} for n in range(25)]
    door.http.post(door.path("faq", "/documents"), json={"model_id": MODEL, "documents": docs})
    seen: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = door.http.get(door.path("faq", f"/documents?offset={offset}&limit=10")).json()
        seen += [doc["id"] for doc in page["documents"]]
        offset = page["next_offset"]
    assert seen == [doc["id"] for doc in docs]
    page = door.http.get(door.path("faq", "/documents?id=d007&id=no&id=d001")).json()
    assert [doc["id"] for doc in page["documents"]] == ["d007", "d001"]
    page = door.http.get(door.path("faq", "/documents?offset=1000")).json()
    assert (page["documents"], page["total"], page["next_offset"]) == ([], 25, None)
    for query in ("limit=0", "limit=1001", "offset=-1", "limit=x", f"offset={1 << 60}"):
        answer = door.http.get(door.path("faq", f"/documents?{query}"))
        assert (answer.status_code, code(answer)) == (400, "invalid_argument"), query
    assert door.http.get(door.path("none", "/documents")).status_code == 404


def test_a_document_that_is_not_sound_is_refused(server: Server, door: Door) -> None:
    """Wrong shapes, embeddings and sizes are 4xx, and nothing of the request is stored."""
    good = {"id": "a", "text": "t", "embedding": [1.0] * DIM}
    huge = "9" * 400
    cases: list[tuple[int, str, str]] = []
    for status, documents in (
        (400, "[]"),
        (400, json.dumps([good, good])),
        (400, json.dumps([{**good, "embedding": []}])),
        (400, json.dumps([{**good, "embedding": [0.0] * DIM}])),
        (400, json.dumps([good, {**good, "id": "b", "embedding": [1.0] * (DIM + 1)}])),
        (400, json.dumps([{**good, "embedding": [1e999, 0, 0, 0]}])),
        (400, f'[{{"id":"a","text":"t","embedding":[{huge},0,0,0]}}]'),
        (400, '[{"id":"a","text":"t","embedding":[NaN,0,0,0]}]'),
        (400, '[{"id":"a","text":"\\ud800","embedding":[1,0,0,0]}]'),
        (400, json.dumps([{**good, "metadata": {"a": [1]}}])),
        (400, json.dumps([{**good, "metadata": {"a": None}}])),
        (400, json.dumps([{**good, "text": 3}])),
        (400, json.dumps([{**good, "id": ""}])),
        (400, json.dumps([{**good, "more": 1}])),
        (413, json.dumps([{**good, "text": "x" * (256 * 1024 + 1)}])),
        (413, json.dumps([{**good, "metadata": {"k": "x" * (64 * 1024 + 1)}}])),
        (413, json.dumps([{**good, "id": "x" * 2001}])),
        (413, json.dumps([{**good, "payload": ["x" * (1 << 20)]}])),
        (413, json.dumps([{"id": str(n), "text": "", "embedding": [1]} for n in range(10_001)])),
    ):
        cases.append((status, documents, "{}"))
    deep = "[" * 100 + "]" * 100
    cases.append((413, f'[{{"id":"a","text":"t","embedding":[1,0,0,0],"payload":{deep}}}]', ""))
    before = stored(server)
    for status, documents, _ in cases:
        answer = door.http.post(
            door.path("faq", "/documents"),
            content=f'{{"model_id":"{MODEL}","documents":{documents}}}',
        )
        assert answer.status_code == status, (documents[:80], answer.text)
        code(answer)
    for body in ("", "{", "null", "[]", '{"documents":[]}', "\xff", "[" * 5000):
        answer = door.http.post(door.path("faq", "/documents"), content=body.encode("latin-1"))
        assert (answer.status_code, code(answer)) == (400, "invalid_argument"), body[:10]
    assert stored(server) == before


def test_documents_of_another_model_do_not_mix(door: Door) -> None:
    """Embeddings of another model or dimension than the index's are refused."""
    door.push("call", "a")
    for model, dim in (("other", DIM), (MODEL, DIM + 1)):
        answer = door.http.post(
            door.path("call", "/documents"),
            json={
                "model_id": model,
                "documents": [{"id": "b", "text": "t", "embedding": [1] * dim}],
            },
        )
        assert (answer.status_code, code(answer)) == (400, "model_mismatch")


def test_a_document_from_the_future_can_still_be_changed(door: Door) -> None:
    """A change is newer than what is there, also where a clock ran ahead when that was written."""
    future = int((datetime.now(UTC) + timedelta(days=300)).timestamp() * 1000)
    sent = made("a", "b", at=future)
    door.put_segment("call", sent)
    door.put_commit(commit("call", sent.ref))
    door.http.post(
        door.path("call", "/documents"),
        json={
            "model_id": MODEL,
            "documents": [{"id": "a", "text": "new", "embedding": [1] * DIM}],
        },
    )
    door.http.post(door.path("call", "/documents/delete"), json={"ids": ["b"]})
    documents = door.http.get(door.path("call", "/documents")).json()["documents"]
    assert [(doc["id"], doc["text"]) for doc in documents] == [("a", "new")]


def test_changes_at_the_same_time_are_all_kept(door: Door) -> None:
    """Of many that merge and delete documents at once nobody's change is lost, and counts are right."""

    def change(n: int) -> int:
        docs = [{"id": f"d{n}-{k}", "text": "t", "embedding": [1, n, k, 0]} for k in range(3)]
        sent = door.http.post(
            door.path("faq", "/documents"), json={"model_id": MODEL, "documents": docs}
        )
        gone = door.http.post(door.path("faq", "/documents/delete"), json={"ids": [f"d{n}-0"]})
        assert (sent.status_code, gone.status_code) == (201, 200), sent.text + gone.text
        deleted: int = gone.json()["deleted"]
        return deleted

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(change, range(16))) == [1] * 16
    page = door.http.get(door.path("faq", "/documents?limit=1000")).json()
    expected = {f"d{n}-{k}" for n in range(16) for k in (1, 2)}
    assert {doc["id"] for doc in page["documents"]} == expected
    assert door.http.get(door.path("faq")).json()["doc_count"] == len(expected)


def test_many_small_changes_are_joined(door: Door) -> None:
    """An index that grows document by document does not grow in segments without end."""
    for n in range(40):
        answer = door.http.post(
            door.path("faq", "/documents"),
            json={
                "model_id": MODEL,
                "documents": [{"id": str(n), "text": "t", "embedding": [1, n, 0, 0]}],
            },
        )
        assert answer.status_code == 201
    wait_until(lambda: len(_segments_of(door, "faq")) <= 17)
    page = door.http.get(door.path("faq", "/documents?limit=1000")).json()
    assert [doc["id"] for doc in page["documents"]] == [str(n) for n in range(40)]


def _segments_of(door: Door, index: str) -> list[Any]:
    found: list[Any] = door.http.get(door.path(index, "/head")).json()["commit"]["segments"]
    return found


def wait_until(holds: Any, *, within_s: float = 20.0) -> None:
    """Look again and again until something holds."""
    pause = threading.Event()
    for _ in range(int(within_s / 0.05)):
        if holds():
            return
        pause.wait(0.05)
    pytest.fail("it did not come about in time")


# --- names -----------------------------------------------------------------------------------------

NAMES = (
    "a/b",
    "/",
    "//",
    "..",
    ".",
    "../../etc/passwd",
    "..%2f..",
    "%2e%2e",
    "%",
    "%zz",
    "Call",
    "CALL",
    "call ",
    "call.",
    "con",
    "~project.json",
    "~keys",
    "a\\b",
    "C:\\x",
    "\u00e9",
    "e\u0301",
    "\U0001f600",
    "\u202e",
    "x" * 200,
    "\u4e16" * 200,
    "a?b",
    "a#b",
    "a;b",
    "head",
    "segments",
)


def test_any_name_is_one_index(server: Server) -> None:
    """Slashes, dots, percent signs, capitals and signs are parts of names, and of nothing else."""
    project, key = server.project("odd/../project ~keys")
    door = Door(server.url, project, key)
    for name in NAMES:
        door.push(name, "a")
    listed = door.http.get(door.path(rest="/indexes")).json()["indexes"]
    assert sorted(found["index"] for found in listed) == sorted(NAMES)
    for name in NAMES:
        assert door.http.get(door.path(name)).json()["name"] == name
    folder = encode_name(project)
    mine = [path for path in stored(server) if path.startswith(folder + "/")]
    assert {path.split("/")[1] for path in mine} == {encode_name(name) for name in NAMES}
    assert len(mine) == 2 * len(NAMES)
    assert Path(server.store).parent.joinpath("etc").exists() is False
    door.close()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/{p}/indexes/%00/head",
        "/v1/projects/{p}/indexes/a%1fb/head",
        "/v1/projects/{p}/indexes/a%1eb/head",
        "/v1/projects/{p}/indexes/a%0ab/head",
        "/v1/projects/{p}/indexes/%7f/head",
        "/v1/projects/{p}/indexes/%c2%85/head",
        "/v1/projects/{p}/indexes/%ff%fe/head",
        "/v1/projects/{p}/indexes/%c0%ae%c0%ae/head",
        "/v1/projects/{p}/indexes/%ed%a0%80/head",
        "/v1/projects/{p}/indexes/%20/head",
        "/v1/projects/{p}/indexes/" + "x" * 201 + "/head",
        "/v1/projects/{p}/indexes/a/commits/0",
        "/v1/projects/{p}/indexes/a/commits/-1",
        "/v1/projects/{p}/indexes/a/commits/1_0",
        "/v1/projects/{p}/indexes/a/commits/1.0",
        "/v1/projects/{p}/indexes/a/commits/%201",
        "/v1/projects/{p}/indexes/a/commits/%d9%a1",
        "/v1/projects/{p}/indexes/a/commits/1000000000000",
        "/v1/projects/{p}/indexes/a/segments/" + "A" * 64,
        "/v1/projects/{p}/indexes/a/segments/" + "a" * 64 + "%0a",
        "/v1/projects/{p}/indexes/a/segments/..%2f..%2f~project.json",
        "/v1/projects/{p}/jobs/..%2f..%2fx",
        "/v1/projects/{p}/jobs/a.json",
    ],
)
def test_what_cannot_be_a_name_is_a_400(server: Server, door: Door, path: str) -> None:
    """Control characters, broken UTF-8, blanks and what is no number or hash are refused."""
    status, body = _raw(server, "GET", path.format(p=door.project), door)
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_argument")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/{p}/indexes/../../{p}/indexes",
        "/v1/projects/{p}/indexes/a/../../../../../etc/passwd",
        "/v1/projects/{p}//head",
        "/v1/projects/{p}/indexes/",
        "//v1/projects/{p}",
        "/v1/projects/{p}/",
        "/v1/projects//indexes",
        "/v1%2fprojects/{p}",
        "/%76%31/projects/{p}/nothing",
    ],
)
def test_a_path_is_taken_as_it_is(server: Server, door: Door, path: str) -> None:
    """No dots are resolved, no slashes joined and no other spelling tried: there is nothing there."""
    status, body = _raw(server, "GET", path.format(p=door.project), door)
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")


def _raw(server: Server, method: str, target: str, door: Door) -> tuple[int, bytes]:
    """Send a path as it stands, which other clients would tidy up."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.putrequest(method, target, skip_host=False)
        connection.putheader("Authorization", door.http.headers["authorization"])
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# --- limits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--max-segment-mb", "1", "--max-indexes", "3", "--requests-per-s", "5")
    with serve(tmp_path_factory.mktemp("small"), *options, "--burst", "60") as running:
        yield running


def test_a_body_over_the_limit_is_refused_before_it_has_come(small: Server) -> None:
    """A length that is too large is refused at once; without one, as soon as it is passed."""
    project, key = small.project()
    door = Door(small.url, project, key)
    path = door.path("call", f"/segments/{'0' * 64}")
    before = stored(small)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield bytes(1 << 16)

    answer = door.http.put(path, content=endless(), headers={"Content-Length": str(1 << 30)})
    assert (answer.status_code, code(answer)) == (413, "too_large")
    assert sent < 1 << 26
    sent = 0
    answer = door.http.put(path, content=endless())
    assert (answer.status_code, code(answer)) == (413, "too_large")
    assert sent < 1 << 26
    answer = door.http.put(door.path("call", "/commits/1"), content=b" " * ((1 << 20) + 1))
    assert (answer.status_code, code(answer)) == (413, "too_large")
    answer = door.http.post(door.path(rest="/tokens"), content=b" " * (1 << 20))
    assert (answer.status_code, code(answer)) == (413, "too_large")
    assert stored(small) == before
    door.close()


def test_who_asks_before_sending_is_told_before(small: Server) -> None:
    """With `Expect: 100-continue` a body that will not be taken is not asked for, and a good one is."""
    project, key = small.project()
    sent = made("a")
    host, _, port = urlsplit(small.url).netloc.partition(":")
    for credential, length, expected in (
        (key, 1 << 30, b"HTTP/1.1 413 "),
        ("wrong", 1 << 30, b"HTTP/1.1 401 "),
        ("wrong", 100, b"HTTP/1.1 401 "),
        (key, len(sent.data), b"HTTP/1.1 100 "),
    ):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            path = f"/v1/projects/{project}/indexes/i/segments/{sent.ref.sha256}"
            line.sendall(
                f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {credential}\r\n"
                f"Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n".encode()
            )
            answer = line.makefile("rb")
            assert answer.readline().startswith(expected)
            if expected.endswith(b"100 "):
                assert answer.readline() == b"\r\n"
                line.sendall(sent.data)
                assert answer.readline().startswith(b"HTTP/1.1 201 ")
            else:
                assert b"connection: close" in answer.read().lower()
            answer.close()


def test_a_project_has_so_many_indexes(small: Server) -> None:
    """The index beyond the limit is a 429 with Retry-After, and nothing of it is stored."""
    project, key = small.project()
    door = Door(small.url, project, key)
    for n in range(3):
        door.push(f"call-{n}", "a")
    before = stored(small)
    sent = made("a")
    body = {"model_id": MODEL, "documents": [{"id": "a", "text": "t", "embedding": [1] * DIM}]}
    for answer in (
        door.put_segment("call-3", sent),
        door.put_commit(commit("call-3")),
        door.http.post(door.path("call-3", "/documents"), json=body),
    ):
        assert (answer.status_code, code(answer)) == (429, "too_large")
        assert int(answer.headers["retry-after"]) >= 1
    assert stored(small) == before
    # What there is goes on, and one that is deleted makes room.
    assert door.http.post(door.path("call-1", "/documents"), json=body).status_code == 201
    assert door.http.delete(door.path("call-2")).status_code == 204
    assert door.put_segment("call-3", sent).status_code == 201
    door.close()


def test_a_project_that_asks_too_often_waits_and_others_do_not(small: Server) -> None:
    """Beyond the burst every request is a 429 that says when to come again; other projects go on."""
    (busy, busy_key), (calm, calm_key) = small.project(), small.project()
    doors = Door(small.url, busy, busy_key), Door(small.url, calm, calm_key)
    answers = [doors[0].http.get(doors[0].path()) for _ in range(90)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert len(refused) > 10
    assert {code(answer) for answer in refused} == {"rate_limited"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert doors[1].http.get(doors[1].path()).status_code == 200
    for door in doors:
        door.close()


def test_large_documents_are_told_apart_from_large_segments(door: Door) -> None:
    """A segment with one document beyond a limit is a 413 that says which limit."""
    for line, told in (
        (document("a", "x" * (256 * 1024 + 1)), "text"),
        (document("a", metadata={"k": "x" * (64 * 1024 + 1)}), "metadata"),
        (document("a", payload="x" * (1 << 20)), "document"),
        (document("a", payload=json.loads("[" * 100 + "]" * 100)), "nesting"),
        (document("x" * 2001), "id"),
    ):
        sent = made(json.loads(line)["id"], lines=[line])
        answer = door.put_segment("call", sent)
        assert (answer.status_code, code(answer)) == (413, "too_large"), told
        assert told in answer.json()["error"]["message"]


# --- several servers -------------------------------------------------------------------------------


def test_two_servers_on_one_store_are_one_cloud(server: Server) -> None:
    """What one server took, another gives, commits on, and tells; keys and tokens hold on both."""
    with serve(server.store) as second:
        project, key = server.project()
        one, two = Door(server.url, project, key), Door(second.url, project, key)
        first = one.push("call", "a")
        assert two.http.get(two.path("call", "/head")).json()["newest"] == 1
        # A segment that the other one took is checked anew, not believed.
        sent = made("b", "c")
        assert one.put_segment("call", sent).status_code == 201
        lie = two.put_commit(commit("call", replace(sent.ref, rows=1), on=first))
        assert (lie.status_code, code(lie)) == (400, "invalid_argument")
        second_version = commit("call", sent.ref, on=first)
        assert two.put_commit(second_version).status_code == 201
        assert one.http.get(one.path("call", "/head")).json()["newest"] == 2
        assert one.put_commit(commit("call", on=first, job_id="late")).status_code == 409
        token = one.http.post(one.path(rest="/tokens"), json={}).json()["token"]
        by_token = Door(second.url, project, token)
        assert by_token.http.get(by_token.path("call")).json()["version"] == 2
        for door in (one, two, by_token):
            door.close()


def test_an_object_store_serves_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over S3 a server promises the same: pushes, one winner per version, documents, events, keys."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with s3_server() as s3:
        for name, value in s3.environ().items():
            monkeypatch.setenv(name, value)
        with serve(f"s3://{s3.bucket}/cloud") as server:
            assert httpx.get(f"{server.url}/readyz").status_code == 200
            project, key = server.project()
            door = Door(server.url, project, key)
            first = door.push("call/1", "a")
            assert door.put_commit(first).status_code == 200
            assert door.put_commit(replace(first, job_id="other")).status_code == 409
            body = {
                "model_id": MODEL,
                "documents": [{"id": "b", "text": "t", "embedding": [1] * DIM}],
            }
            assert door.http.post(door.path("call/1", "/documents"), json=body).status_code == 201
            page = door.http.get(door.path("call/1", "/documents")).json()
            assert [doc["id"] for doc in page["documents"]] == ["a", "b"]
            with door.http.stream("GET", door.path("call/1", "/events")) as answer:
                lines = answer.iter_lines()
                assert [next(lines), next(lines)][1] == 'data: {"version": 2}'
            assert door.http.delete(door.path("call/1")).status_code == 204
            wrong = httpx.get(server.url + door.path(), headers=Server.bearer("mv_" + "0" * 45))
            assert wrong.status_code == 401
            door.close()


def test_a_damaged_store_is_a_fault_of_the_server(server: Server, door: Door) -> None:
    """What is damaged in the store is a 500 `corrupt_data`, told without paths or content."""
    new = door.push("call", "a")
    root = Path(server.store) / encode_name(door.project) / "call"
    (root / "segments" / new.segments[0].sha256).write_bytes(b"junk")
    (root / "log" / "000000000002.json").write_bytes(b"{}")
    for rest in ("/head", "/documents", "/commits", "/commits/2"):
        answer = door.http.get(door.path("call", rest))
        assert (answer.status_code, code(answer)) == (500, "corrupt_data"), rest
        assert str(root) not in answer.text


def test_a_store_that_is_gone_is_a_503(tmp_path: Path) -> None:
    """Without its store a server lives, is not ready, and says so; with it again it is."""
    store = tmp_path / "store"
    with serve(store) as server:
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        store.rename(tmp_path / "elsewhere")

        def status() -> int:
            return httpx.get(f"{server.url}/readyz").status_code

        wait_until(lambda: status() == 503)
        answer = httpx.get(f"{server.url}/readyz")
        assert code(answer) == "cloud_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
        (tmp_path / "elsewhere").rename(store)
        wait_until(lambda: status() == 200)
