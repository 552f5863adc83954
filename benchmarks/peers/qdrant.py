"""Qdrant's client in its local mode, on disk: numpy in this process, without Qdrant's own engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from qdrant_client import QdrantClient
from qdrant_client.models import Distance, PointStruct, VectorParams

from benchmarks.peers import encoders
from benchmarks.peers.contender import TOP_K, Contender, Text


class Store(Contender):
    """One collection, searched exactly."""

    def __init__(self, encoder: str) -> None:
        self._encode = encoders.load(encoder)

    def _points(self, texts: Sequence[Text]) -> Iterator[PointStruct]:
        vectors = self._encode([text for _, text in texts])
        for text, vector in zip(texts, vectors, strict=True):
            # An id of Qdrant's is a number or a UUID.
            key = str(uuid5(NAMESPACE_OID, text.id))
            yield PointStruct(id=key, vector=vector.tolist(), payload=text._asdict())

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        client = QdrantClient(path=str(folder))
        client.create_collection(
            "memory", VectorParams(size=encoders.DIM, distance=Distance.COSINE)
        )
        client.upload_points("memory", self._points(passages))
        client.close()

    def open(self, folder: Path) -> None:
        self._client = QdrantClient(path=str(folder))

    def add(self, turn: Text) -> None:
        self._client.upsert("memory", list(self._points([turn])))

    def query(self, text: str) -> list[Text]:
        found = self._client.query_points("memory", self._encode([text])[0], limit=TOP_K)
        return [Text(point.payload["id"], point.payload["text"]) for point in found.points]

    def close(self) -> None:
        self._client.close()
