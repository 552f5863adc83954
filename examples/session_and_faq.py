"""Short-term and long-term context side by side, with the session API: a filter, a delete, a push."""

import asyncio
import tempfile

from moss_voice import DocumentInfo, MossClient, QueryOptions


async def main(folder: str) -> None:
    async with MossClient(cloud=folder) as client:
        plans = [
            DocumentInfo(
                "basic", "The basic plan has 10 GB a month.", {"price": 9, "kind": "mobile"}
            ),
            DocumentInfo(
                "plus", "The plus plan has 50 GB a month.", {"price": 19, "kind": "mobile"}
            ),
            DocumentInfo(
                "fibre", "Fibre at home runs at 500 Mbit/s.", {"price": 39, "kind": "home"}
            ),
        ]
        await client.create_index("plans", plans)
        await client.load_index("plans")

        session = await client.session("customer-77")
        added, updated = await session.add_docs(
            [
                DocumentInfo("turn-1", "I stream a lot on the train and run out of data"),
                DocumentInfo("turn-2", "my budget is twenty a month"),
            ]
        )
        print(f"{added} added, {updated} updated")

        cheap = {"$and": [
            {"field": "kind", "condition": {"$eq": "mobile"}},
            {"field": "price", "condition": {"$gt": 10, "$lte": 20}},
        ]}  # fmt: skip
        offer = await client.query(
            "plans", "more data on the go", QueryOptions(top_k=1, filter=cheap)
        )
        said = await session.query("what can the customer spend?", QueryOptions(top_k=1))
        print(f"{offer.docs[0].id}: {offer.docs[0].text}")
        print(f"{said.docs[0].id}: {said.docs[0].text}")

        await session.delete_docs(["turn-1"])
        pushed = await session.push_index()
        print(f"pushed {pushed.doc_count} document as version {pushed.version}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
