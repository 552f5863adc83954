"""A caller who comes back is known: run it with `python examples/returning_caller.py`.

Each call is an index of its own, and the caller's last ones are the knowledge of the next. So each call has
its own retention period, the prompt says which call a line is from, and no call grows for ever.
"""

import asyncio
import hashlib
import hmac
import tempfile
from datetime import timedelta
from pathlib import Path

from moss_voice import MossClient

# Names of indexes are not sealed, so they hold no phone number: a keyed hash stands for it. Keep the secret
# where your keys are; with another one nobody is known any more.
SECRET = b"of your own"
KEPT = timedelta(days=90)
CALLS = {
    "2026-10-02-0912": [
        ("caller", "hi, the internet drops every evening around eight"),
        ("agent", "I have moved your line to channel eleven. It should be stable now."),
    ],
    "2026-11-03-1740": [
        ("caller", "I would like to move my contract to my new flat in Harbour Street"),
        ("agent", "Done: the move is booked for the first of December, at no charge."),
    ],
    "2026-11-05-1105": [
        ("caller", "please send my invoices by post from now on"),
        ("agent", "I have switched you to paper invoices."),
    ],
}


def caller_id(number: str) -> str:
    """Return what a caller is called in names and metadata."""
    return hmac.new(SECRET, number.encode(), hashlib.sha256).hexdigest()[:16]


async def last_calls(client: MossClient, caller: str, most: int = 3) -> list[str]:
    """Return the names of a caller's last calls, oldest first: names sort by time.

    One listing of the project. With very many calls, keep the names in your customer database instead.
    """
    names = [index.name for index in await client.list_indexes()]
    return sorted(name for name in names if name.startswith(f"{caller}-"))[-most:]


async def serve(
    client: MossClient, number: str, started: str, turns: list[tuple[str, str]]
) -> None:
    """Serve a call with the caller's last calls in mind, and show what its turns recall of them."""
    caller = caller_id(number)
    before = await last_calls(client, caller)
    print(f"{started}: {turns[0][1]!r}, calls before: {len(before)}")
    # `focus=()`: what people said is no catalogue of names. A second, since this machine may be slow.
    async with await client.call(
        f"{caller}-{started}", knowledge=before, focus=(), ttl=KEPT, deadline_ms=1_000
    ) as call:
        for speaker, text in turns:
            await call.heard(text, speaker, metadata={"caller": caller})
            hits = (await call.context(text)).hits if speaker == "caller" else []
            for hit in hits:
                print(f"    recalled from {hit.index_name.partition('-')[2]}: {hit.text}")
    # A worker serves many callers: what it loaded for this one goes.
    await client.unload_indexes(before)


async def main(folder: Path) -> None:
    own, ines, other = folder / "agent", "+44 20 7946 0142", "+44 20 7946 0999"
    async with MossClient(cloud=folder / "cloud", cache_path=own, journal_path=own) as client:
        for started, turns in CALLS.items():
            await serve(client, ines, started, turns)
        asked = [("caller", "when is the move to the new flat, and what does it cost me?")]
        await serve(client, ines, "2026-11-20-0830", asked)
        await serve(client, other, "2026-11-20-0845", asked)

        names = await last_calls(client, caller_id(ines), most=1_000)
        kept = timedelta(seconds=(await client.get_index(names[-1])).ttl_s or 0)
        print(f"{len(names)} calls, each kept for {kept.days} days")
        # On request: every turn of the caller's calls, in every version of every index.
        theirs = {"field": "caller", "condition": {"$eq": caller_id(ines)}}
        gone = await client.forget(theirs)
        for name in names:
            await client.delete_index(name)
        found = await client.forget(theirs, dry_run=True)
        print(f"forgotten: {sum(one.documents for one in gone)} turns, still found: {len(found)}")
        print(
            f"kept: {[index.doc_count for index in await client.list_indexes()]} of the other caller"
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
