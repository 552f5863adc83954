"""Another process that takes up calls by name: run as `python -m moss_voice.cli.specialist`.

The law: it knows nothing but the cloud's address and the calls' names. It reads one JSON object from
stdin and writes one to stdout:

    {"cloud", "project_id", "project_key", "cache", "top_k", "calls": [{"name", "queries"}]}
    {"pid", "calls": [{"name", "docs", "resume_ms", "answers": [{"took_ms", "docs": [..]}]}]}
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moss_voice
from moss_voice.client import MossClient
from moss_voice.errors import MossError
from moss_voice.types import QueryOptions

__all__ = ["Visit", "ask_specialist", "main"]


@dataclass(frozen=True, slots=True)
class Visit:
    """A call to take up, and what to ask of it."""

    name: str
    queries: Sequence[str] = ()


_PACKAGE = Path(moss_voice.__file__).resolve().parent.parent


async def ask_specialist(
    visits: Sequence[Visit],
    *,
    cloud: str | None,
    project_id: str | None,
    project_key: str | None,
    key_file: Path | None = None,
    top_k: int = 3,
) -> dict[str, Any]:
    """Let another process take up calls that were pushed, and return what it tells.

    Raises:
        MossError: If it fails; it has said why on stderr.
    """
    paths = [str(_PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="moss-voice-") as cache:
        order = {
            "cloud": cloud,
            "project_id": project_id,
            "project_key": project_key,
            "key_file": None if key_file is None else str(key_file),
            "cache": cache,  # its own: what it knows comes from the cloud
            "top_k": top_k,
            "calls": [{"name": visit.name, "queries": list(visit.queries)} for visit in visits],
        }
        # -P: a file of the working directory must not stand in for a module.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "moss_voice.cli.specialist"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        try:
            told, _ = await process.communicate(json.dumps(order).encode())
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
    if process.returncode:
        raise MossError(f"the specialist's process ended with status {process.returncode}")
    answer: dict[str, Any] = json.loads(told)
    return answer


async def _serve(order: Mapping[str, Any]) -> dict[str, object]:
    async with MossClient(
        order["project_id"],
        order["project_key"],
        cloud=order["cloud"],
        cache_path=order["cache"],
        encryption_key_file=order["key_file"],
    ) as client:
        calls = [await _visit(client, call, order["top_k"]) for call in order["calls"]]
    return {"pid": os.getpid(), "calls": calls}


async def _visit(client: MossClient, call: Mapping[str, Any], top_k: int) -> dict[str, object]:
    started = time.perf_counter()
    async with await client.session(call["name"]) as session:
        resume_ms = (time.perf_counter() - started) * 1000.0
        results = [
            await session.query(query, QueryOptions(top_k=top_k)) for query in call["queries"]
        ]
        return {
            "name": call["name"],
            "docs": session.doc_count,
            "resume_ms": resume_ms,
            "answers": [
                {
                    "took_ms": result.time_taken_ms,
                    "docs": [
                        {"id": d.id, "text": d.text, "score": d.score, "metadata": d.metadata}
                        for d in result.docs
                    ],
                }
                for result in results
            ],
        }


def main() -> int:
    """Serve the one order on stdin."""
    try:
        answer = asyncio.run(_serve(json.load(sys.stdin)))
    except MossError as error:
        sys.stderr.write(f"error: specialist: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
