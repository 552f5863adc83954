"""What the wheel with the extra `livekit` must do without the source tree: run by `make wheel`.

Usage: python -I livekit_extra.py; prints one line and exits 0, or raises.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from livekit.agents import Agent, Plugin
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall

from moss_voice import DocumentInfo, MossClient


async def a_spoken_call(folder: Path) -> None:
    async with MossClient(cloud=folder / "cloud", journal_path=folder / "j") as client:
        passage = DocumentInfo("refunds", "A refund takes five working days.")
        await client.create_index("faq", [passage])
        model = ScriptedLLM(lambda _: "let me see")
        call = SimulatedCall(model)
        await moss_voice.attach(
            call.session, client, call_id="call-1", knowledge=["faq"], deadline_ms=5_000
        )
        async with call:
            await call.start(Agent(instructions=""))
            await call.caller_says("when will I get my money back")
        shown = " ".join(m.raw_text_content or "" for m in model.prompts[-1].messages())
        assert "[faq: refunds] A refund takes five working days." in shown
        async with await client.session("call-1") as session:
            assert [doc.text for doc in await session.get_docs()] == [
                "when will I get my money back",
                "let me see",
            ]


def main() -> None:
    package = Path(moss_voice.__file__).parent
    assert "site-packages" in package.parts, f"not the installed wheel: {package}"
    assert (package / "py.typed").is_file()
    assert not (package.parent / "__init__.py").exists(), "shadows the host's namespace"
    assert "livekit.plugins.moss_voice" in [p.package for p in Plugin.registered_plugins]
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(a_spoken_call(Path(folder)))
        environment = {**os.environ, "XDG_DATA_HOME": folder, "XDG_CACHE_HOME": folder}
        command = [sys.executable, "-I", "-m", "livekit.agents", "download-files"]
        answer = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert "livekit.plugins.moss_voice" in answer.stdout + answer.stderr
    print(f"the LiveKit plugin of the wheel works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
