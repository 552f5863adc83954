"""What the wheel with the extra `pipecat` must do without the source tree: run by `make wheel`.

Usage: python -I pipecat_extra.py; prints one line and exits 0, or raises.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import pipecat_moss_voice
from loguru import logger
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient


async def a_spoken_call(folder: Path) -> None:
    async with MossClient(cloud=folder / "cloud", journal_path=folder / "j") as client:
        passage = DocumentInfo("refunds", "A refund takes five working days.")
        await client.create_index("faq", [passage])
        model = ScriptedLLMService(lambda _: "let me see")
        memory = MossVoiceMemory(
            client, call_id="call-1", knowledge=["faq"], options={"deadline_ms": 5_000}
        )
        call = SimulatedCall(model, processors=[memory])
        async with call:
            await call.start()
            await call.caller_says("when will I get my money back")
        assert "[faq: refunds] A refund takes five working days." in str(model.prompts[-1])
        async with await client.session("call-1") as session:
            assert [doc.text for doc in await session.get_docs()] == [
                "when will I get my money back",
                "let me see",
            ]


def main() -> None:
    logger.remove()
    package = Path(pipecat_moss_voice.__file__).parent
    assert "site-packages" in package.parts, f"not the installed wheel: {package}"
    assert (package / "py.typed").is_file()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(a_spoken_call(Path(folder)))
    print(f"the Pipecat processor of the wheel works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
