"""Two ways to an embedding model of your own: run it with `python examples/custom_model.py`.

`custom`: you embed, wherever you like, and every document, turn and query brings its vector. Here a few
lines of numpy do it: hashed runs of letters, which know no meaning and see through spelling.
A directory with `model.onnx` and `tokenizer.json`, as sentence-transformers exports them: moss_voice embeds,
and interims are looked up ahead as with the bundled model (which is that directory here).
"""

import asyncio
import tempfile
import zlib
from pathlib import Path

import numpy as np

import moss_voice.models
from moss_voice import DocumentInfo, MossClient, QueryOptions
from moss_voice.errors import ModelMismatchError

DIM = 512
DEVICES = {
    "fritzbox": "Fritzbox 7590: hold the WPS button for six seconds to pair.",
    "speedport": "Speedport Smart 4: pairing starts in the menu under Home network.",
    "airport": "Airport Express: discontinued, we exchange it at no charge.",
}


def embed(text: str) -> list[float]:
    """Return a vector of length one that is near for texts that are written alike."""
    row = np.zeros(DIM, np.float32)
    letters = "".join(char for char in text.lower() if char.isalnum())
    for size in (3, 4, 5):
        for start in range(len(letters) - size + 1):
            number = zlib.crc32(letters[start : start + size].encode())
            row[number % DIM] += 1 if number & 1 << 31 else -1
    return [float(x) for x in row / (np.linalg.norm(row) or 1)]


async def own_vectors(client: MossClient) -> None:
    """Give every document, turn and query its vector; one without is an error."""
    docs = [DocumentInfo(id_, text, embedding=embed(text)) for id_, text in DEVICES.items()]
    await client.create_index("devices", docs, "custom")
    question = "how do i pair the friz boxx"
    options = QueryOptions(top_k=1, alpha=1.0, embedding=embed(question))
    (found,) = (await client.query("devices", question, options)).docs
    print(f"{question}?\n    {found.id}: {found.text}")

    # What has no vector and could not wait for one: interims are not looked up ahead, and the agent's own
    # tools, `recall` and `search_knowledge`, find by words alone.
    async with await client.call(
        "call-1", model_id="custom", knowledge=["devices"], deadline_ms=1_000
    ) as call:
        turn = "hello, I have got a speed port smart"
        await call.heard(turn, "caller", embedding=embed(turn))
        turn = "so how do I pair my speedport"
        context = await call.context(turn, embedding=embed(turn))
        print(f"{turn}?", *(f"    {hit.source}: {hit.text}" for hit in context.hits), sep="\n")


async def own_directory(client: MossClient, directory: Path) -> None:
    """Name the directory as the model; where its files are elsewhere, MOSS_VOICE_MODEL_DIR is their parent."""
    session = await client.session("notes", str(directory))
    await session.add_docs([DocumentInfo("1", "The parcel was handed to a neighbour.")])
    (found,) = (await session.query("who took the delivery?", QueryOptions(top_k=1))).docs
    print(f"{session.model_id.partition('@')[0]}: {found.text}")
    await session.push_index()
    # A stored index knows its model by the hash of its weights, and takes no other one's vectors.
    try:
        await client.session("notes", "moss-minilm")
    except ModelMismatchError as error:
        print(f"with another model: {error.code}")


async def main(folder: Path) -> None:
    own = folder / "agent"
    async with MossClient(cloud=folder / "cloud", cache_path=own, journal_path=own) as client:
        await own_vectors(client)
        await own_directory(client, Path(moss_voice.models.__file__).parent / "minilm")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
