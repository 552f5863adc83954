"""What the installed wheel must do without the source tree: run by `make wheel`, not by pytest.

Usage: python -I smoke.py; prints one line and exits 0, or raises.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import moss_voice
from moss_voice import DocumentInfo, MossClient, QueryOptions


async def a_call(folder: Path) -> None:
    def client() -> MossClient:
        return MossClient(
            cloud=folder / "cloud", cache_path=folder / "c", journal_path=folder / "j"
        )

    async with client() as agent:
        await agent.create_index(
            "faq",
            [
                DocumentInfo(
                    "hours", "We are open from nine to five on weekdays.", {"topic": "hours"}
                ),
                DocumentInfo("refunds", "A refund takes five working days.", {"topic": "money"}),
            ],
        )
        call = await agent.call("call-1", knowledge=["faq"])
        await call.heard("hi, my booking number is four four one nine", speaker="caller")
        await call.heard("thank you, I see the booking", speaker="agent")
        context = await call.context("when will I get my money back?", deadline_ms=5_000)
        assert context.outcome == "ok", context.outcome
        assert any(hit.id == "refunds" for hit in context.hits), [hit.id for hit in context.hits]
        pushed = await call.end()
        assert pushed is not None
        assert pushed.doc_count == 2
    async with client() as specialist:
        session = await specialist.session("call-1")
        assert session.doc_count == 2
        found = await session.query("which booking number?", QueryOptions(top_k=1))
        assert "four four one nine" in found.docs[0].text


def a_call_to_look_at(folder: Path, command: Path) -> None:
    """A recorded call, written as a page from the templates in the wheel."""
    faq, calls, page = folder / "faq.md", folder / "calls.jsonl", folder / "call.html"
    faq.write_text("# Refunds\n\n## How long does a refund take?\n\nFive working days.\n")
    turns = [
        {"i": 1, "speaker": "agent", "text": "hello"},
        {"i": 2, "speaker": "user", "text": "how long does my refund take?"},
    ]
    calls.write_text(json.dumps({"id": "call", "turns": turns}) + "\n")
    answer = subprocess.run(
        [command, "inspect", calls, "--knowledge", faq, "--out", page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Five working days." in page.read_text("utf-8")


def main() -> None:
    package = Path(moss_voice.__file__).parent
    assert "site-packages" in package.parts, f"not the installed wheel: {package}"
    for name in ("py.typed", "models/minilm/model.onnx", "models/minilm/LICENSE"):
        assert (package / name).is_file(), f"missing in the wheel: {name}"
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(a_call(Path(folder)))
    command = Path(sys.executable).with_name("moss-voice")
    answer = subprocess.run(
        [command, "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr or answer.stdout
    json.loads(answer.stdout)
    with tempfile.TemporaryDirectory() as folder:
        a_call_to_look_at(Path(folder), command)
    print(
        f"the wheel of moss-voice {moss_voice.__version__} works on Python {sys.version.split()[0]}"
    )


if __name__ == "__main__":
    main()
