"""The demo's data: a telecom FAQ, a support call, and what a specialist asks about it afterwards.

Written for this package: neither company nor caller exists.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import as_file, files

from moss_voice.calls import CallScript, read_calls
from moss_voice.faq import read_documents
from moss_voice.types import DocumentInfo

__all__ = ["Question", "call", "faq_documents", "questions"]


@dataclass(frozen=True, slots=True)
class Question:
    """What the specialist asks the memory after resuming the call.

    Attributes:
        query: The question, as somebody asks who has not heard the call.
        turns: The numbers of the turns of which each holds the answer.
        answer: The words, in any case, by which each of these turns answers.
    """

    query: str
    turns: tuple[int, ...]
    answer: str


def faq_documents() -> list[DocumentInfo]:
    """Read the FAQ of Larkline, a provider of broadband and mobile plans."""
    with as_file(files(__name__) / "faq.md") as path:
        return read_documents(path)


def call() -> CallScript:
    """Read the call: a fault report that turns to roaming, fees and a hand-over to a specialist.

    Its `knowledge` names the passages of `faq_documents` that answer the caller's turns.
    """
    with as_file(files(__name__) / "call.jsonl") as path:
        return next(read_calls(path))


def questions() -> list[Question]:
    """Read what the specialist asks, with the turns that hold the answers."""
    lines = (files(__name__) / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = (json.loads(line) for line in lines)
    return [Question(row["query"], tuple(row["turns"]), row["answer"]) for row in rows]
