"""mem0's path to its vector store, without an LLM: texts are stored as they are (`infer=False`).

Its default store, Qdrant's local mode, and without the extras (spaCy, fastembed) that give it entities and
keywords and take time. It wants an LLM's settings, and never calls it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mem0 import Memory

from benchmarks.peers import encoders
from benchmarks.peers.contender import TOP_K, Contender, Text

# Nobody listens there.
_NOWHERE = {"api_key": "none", "openai_base_url": "http://127.0.0.1:9"}


class _Embedder:
    """An encoder as mem0 asks for one."""

    def __init__(self, encoder: str) -> None:
        self._encode = encoders.load(encoder)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        del memory_action
        row: list[float] = self._encode([text])[0].tolist()
        return row


class Store(Contender):
    """All memories under one user, as mem0 wants one in every call."""

    def __init__(self, encoder: str) -> None:
        self._encoder = encoder

    def _memory(self, folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        embedder: dict[str, Any] = {"provider": "openai", "config": _NOWHERE}
        if self._encoder != "int8":
            model = {"model": str(encoders.float32_weights()), "model_kwargs": {"device": "cpu"}}
            embedder = {"provider": "huggingface", "config": model}
        store = {
            "collection_name": "memory",
            "path": str(folder / "qdrant"),
            "embedding_model_dims": encoders.DIM,
            "on_disk": True,
        }
        memory = Memory.from_config(
            {
                "vector_store": {"provider": "qdrant", "config": store},
                "embedder": embedder,
                "llm": {"provider": "openai", "config": _NOWHERE},
                "history_db_path": str(folder / "history.db"),
            }
        )
        if self._encoder == "int8":
            memory.embedding_model = _Embedder(self._encoder)
        return memory

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        self.open(folder)
        # It has no other door: each text is embedded and stored by itself.
        for passage in passages:
            self.add(passage)
        self.close()

    def open(self, folder: Path) -> None:
        self._opened = self._memory(folder)

    def add(self, turn: Text) -> None:
        self._opened.add(turn.text, user_id="caller", metadata={"text_id": turn.id}, infer=False)

    def query(self, text: str) -> list[Text]:
        found = self._opened.search(text, top_k=TOP_K, filters={"user_id": "caller"})
        return [Text(hit["metadata"]["text_id"], hit["memory"]) for hit in found["results"]]

    def close(self) -> None:
        self._opened.vector_store.client.close()
        self._opened.close()
