"""What the call is about: names found exactly, remembered newest first."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moss_voice.call.focus import Focus, Names
from moss_voice.text import words

vocabulary = st.sampled_from(["ash", "bay", "cove", "dell", "elm"])
names_drawn = st.lists(st.lists(vocabulary, min_size=1, max_size=4).map(" ".join), max_size=12)


def naive(values: list[str], turn: list[str]) -> list[str]:
    """Every free span, the longest first and then from the left; a word is used once."""
    found: list[str] = []
    free = [True] * len(turn)
    for length in range(len(turn), 0, -1):
        for start in range(len(turn) - length + 1):
            span = slice(start, start + length)
            named = [value for value in values if words(value) == turn[span]]
            if named and all(free[span]):
                free[span] = [False] * length
                found.extend(value for value in named if value not in found)
    return found


@settings(deadline=None)
@example(["ash", "bay", "bay ash"], ["ash", "bay"])
@given(names_drawn, st.lists(vocabulary, max_size=12))
def test_find_is_the_naive_search(values: list[str], turn: list[str]) -> None:
    """The look-up by first word and length finds what trying every span finds, in the same order."""
    values = list(dict.fromkeys(values))
    assert Names(dict.fromkeys(values)).find(turn) == naive(values, turn)


def test_names_are_found_whatever_their_spelling() -> None:
    """Case, accents of form, apostrophes and punctuation make no difference; other words do."""
    names = Names(
        {"A & B Guest House": [1, 4], "Caffè Uno": [2], "Joe\u2019s Diner": [3], "!!!": [5]}
    )
    assert names.find(words("is the a b guest-house, near joe's diner?")) == [
        "A & B Guest House",
        "Joe\u2019s Diner",
    ]
    assert names.find(words("CAFFE\u0300 UNO")) == ["Caffè Uno"]
    assert names.find(words("the guest house")) == []
    assert names.find([]) == []
    assert names.rows("A & B Guest House") == [1, 4]
    with pytest.raises(KeyError):
        names.rows("a b guest house")
    assert (len(names), repr(names)) == (4, "<Names 4 values>")


def test_the_longest_name_takes_its_words() -> None:
    """A name within a longer one that was said is not named by it, but is when said on its own."""
    names = Names({"Cambridge": 1, "Cambridge Arms": 2, "CAMBRIDGE ARMS": 3})
    assert names.find(words("the cambridge arms")) == ["Cambridge Arms", "CAMBRIDGE ARMS"]
    assert names.find(words("cambridge has the cambridge arms")) == [
        "Cambridge Arms",
        "CAMBRIDGE ARMS",
        "Cambridge",
    ]


def test_cost_does_not_grow_with_the_names() -> None:
    """Finding names looks at the turn's words only, not at each name."""
    looks = 0

    class Counted(str):
        __slots__ = ()

        def __hash__(self) -> int:
            nonlocal looks
            looks += 1
            return super().__hash__()

        __eq__ = str.__eq__

    names = Names({f"hotel {n} of the{' long' * (n % 5)} way": n for n in range(3000)})
    turn = [Counted(word) for word in words("i'd like hotel 1234 of the long long long long way")]
    assert names.find(turn) == ["hotel 1234 of the long long long long way"]
    assert looks < 200


def test_weights_fall_with_each_name_after() -> None:
    """The entity named k entities ago weighs 0.5 * 0.7**k; naming it again renews it."""
    focus = Focus()
    assert focus.weights() == {}
    focus.heard(["a"])
    focus.heard([])
    focus.heard(["b", "c", "b"])
    assert focus.recent == ("b", "c", "a")
    assert focus.weights() == pytest.approx({"b": 0.5, "c": 0.35, "a": 0.245})
    focus.heard(["a"])
    assert focus.weights() == pytest.approx({"a": 0.5, "b": 0.35, "c": 0.245})
    assert repr(focus) == "<Focus on 3 values>"


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30).map(str), max_size=4), max_size=20))
def test_recent_is_the_order_of_last_naming(turns: list[list[str]]) -> None:
    """The list holds each value once, the newest first, and stays short through any call."""
    focus = Focus()
    for values in turns:
        focus.heard(values)
    newest_first = [value for values in reversed(turns) for value in values]
    expected = list(dict.fromkeys(newest_first))
    assert list(focus.recent) == expected[: len(focus.recent)]
    assert len(focus.recent) == min(len(expected), 12)
