"""What a reply is due to, where a block goes and what a window keeps: tables by hand, for any host."""

from __future__ import annotations

import pytest

from moss_voice.call.prompt import Kind, block_place, last_user, unanswered, windowed

LETTERS: dict[str, Kind] = {
    "s": "instructions",
    "u": "user",
    "a": "assistant",
    "t": "tool",
    "x": "other",
}


def kinds(letters: str) -> list[Kind]:
    return [LETTERS[letter] for letter in letters]


@pytest.mark.parametrize(
    ("letters", "asked", "place"),
    [
        ("", None, 0),
        ("s", None, 1),
        ("ss", None, 1),
        ("u", 0, 0),
        ("su", 1, 1),
        ("suau", 3, 3),
        ("suuu", 3, 3),
        ("sua", None, 3),
        ("suas", None, 3),
        ("sus", 1, 1),
        ("sux", 1, 1),
        # What is said before a tool is called is no answer yet; what is said after it is one.
        ("sutt", 1, 1),
        ("suatt", 1, 1),
        ("suatta", None, 6),
        ("suattatt", 1, 1),
    ],
)
def test_what_a_reply_is_due_to(letters: str, asked: int | None, place: int) -> None:
    """The last user message that nothing has answered, and the place just before it."""
    assert unanswered(kinds(letters)) == asked
    assert block_place(kinds(letters)) == place


def test_more_instructions_than_one_may_lead() -> None:
    """A host that knows how many instructions are its agent's own keeps the block behind them."""
    assert block_place(kinds("sss"), leading=2) == 2
    assert block_place(kinds("sss"), leading=9) == 3


@pytest.mark.parametrize(
    ("letters", "last"), [("", None), ("sa", None), ("su", 1), ("suaut", 3), ("us", 0)]
)
def test_last_user(letters: str, last: int | None) -> None:
    """Wherever it stands."""
    assert last_user(kinds(letters)) == last


@pytest.mark.parametrize(
    ("letters", "window", "kept"),
    [
        ("suauau", 2, [0, 4, 5]),
        ("suauau", 99, [0, 1, 2, 3, 4, 5]),
        ("ssuau", 1, [0, 1, 4]),
        # The turn that is replied to stays whole.
        ("suautttt", 2, [0, 3, 4, 5, 6, 7]),
        # No output without its call.
        ("suttau", 3, [0, 4, 5]),
        ("suttau", 2, [0, 4, 5]),
        ("aaa", 2, [1, 2]),
        ("", 3, []),
        ("ss", 1, [0, 1]),
    ],
)
def test_a_window(letters: str, window: int, kept: list[int]) -> None:
    """By hand: the instructions at the head and the end of the conversation, each item once."""
    assert windowed(kinds(letters), window) == kept
