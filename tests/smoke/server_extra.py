"""What the wheel with the extra `server` must do without the source tree: run by `make wheel`.

Usage: python -I server_extra.py; prints one line and exits 0, or raises.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import moss_voice
from moss_voice import DocumentInfo, MossClient
from moss_voice.errors import EncryptionKeyError

COMMAND = str(Path(sys.executable).with_name("moss-voice"))


async def a_call_is_handed_over(url: str, key: str, folder: Path) -> None:
    counts = []
    for agent, turn in (("a", "I was charged twice in March"), ("b", "that was refunded")):
        client = MossClient(
            "acme",
            key,
            cloud=url,
            cache_path=folder / agent / "cache",
            journal_path=folder / agent / "journal",
        )
        async with client:
            call = await client.call("call-42")
            await call.heard(turn)
            pushed = await call.end()
            assert pushed is not None
            counts.append(pushed.doc_count)
    assert counts == [1, 2]


async def a_search(url: str, key: str) -> None:
    """The server embeds the question with the model in the wheel."""
    request = urllib.request.Request(
        f"{url}/v1/projects/acme/indexes/call-42/search",
        data=json.dumps({"query": "double charge in spring"}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:  # noqa: ASYNC210 - nothing else runs
        found = json.load(answer)
    assert found["documents"][0]["text"] == "I was charged twice in March", found


async def the_missing_extra_is_named(folder: Path) -> None:
    """Encryption is an extra of its own, and who asks for it without is told which."""
    assert find_spec("cryptography") is None, "the server must do without"
    client = MossClient(
        cloud=folder / "sealed", encryption_key="00" * 32, journal_path=folder / "j"
    )
    async with client:
        told = ""
        try:
            await client.create_index("calls", [DocumentInfo("a", "words")])
        except EncryptionKeyError as error:
            told = str(error)
        assert "moss-voice[encryption]" in told, "sealed without the package that seals"


def main() -> None:
    package = Path(moss_voice.__file__).parent
    assert "site-packages" in package.parts, f"not the installed wheel: {package}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = str(folder / "store")
        made = subprocess.run(
            [COMMAND, "--json", "project", "create", "acme", "--store", store],
            capture_output=True,
            text=True,
            check=True,
        )
        key = json.loads(made.stdout)["key"]
        server = subprocess.Popen(
            [COMMAND, "serve", "--json", "--store", store, "--port", "0", "--log-level", "error"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            asyncio.run(a_call_is_handed_over(url, key, folder))
            for path in ("/docs", "/openapi.json", "/metrics", "/readyz", "/"):
                with urllib.request.urlopen(url + path) as answer:
                    assert answer.status == 200
                    page = answer.read().decode()
            # The dashboard's templates are in the wheel; without a session it asks for a key.
            assert "<form" in page
            assert 'type="password"' in page
            asyncio.run(a_search(url, key))
        finally:
            server.terminate()
            assert server.wait(60) == 0
        asyncio.run(the_missing_extra_is_named(folder))
    print(f"the server of the wheel works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
