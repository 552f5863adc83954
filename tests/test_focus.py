"""What a call is about: values named, newest first, and what they are worth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_voice.call.focus import merged, weights
from moss_voice.call.names import Named

KEPT = 8


def said(*values: str, certainty: float = 1.0) -> list[Named]:
    return [Named(value, certainty, "exact" if certainty == 1.0 else "partial") for value in values]


def values_of(named: list[Named]) -> list[str]:
    return [each.value for each in named]


def test_the_newest_is_first() -> None:
    """Values come newest turn first, within a turn as they were named; one named again is new again."""
    assert merged([]) == []
    turns = [said("Bristol", "Corona"), [], said("Astoria")]
    assert values_of(merged(turns)) == ["Bristol", "Corona", "Astoria"]
    assert values_of(merged([said("Astoria"), *turns])) == ["Astoria", "Bristol", "Corona"]


def test_a_value_is_as_certain_as_it_ever_was() -> None:
    """A hint after the full name is no doubt; the place is that of the newest mention."""
    turns = [said("Astoria", certainty=0.4), said("Bristol"), said("Astoria", certainty=0.9)]
    assert [(each.value, each.certainty) for each in merged(turns)] == [
        ("Astoria", 0.9),
        ("Bristol", 1.0),
    ]


def test_the_list_stays_short() -> None:
    """The values named longest ago are left out."""
    values = [f"v{n}" for n in range(KEPT + 3)]
    assert values_of(merged(said(value) for value in values)) == values[:KEPT]


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([], {}),
        (said("Astoria"), {"Astoria": 0.5}),
        (said("a", "b", "c"), {"a": 0.5, "b": 0.35, "c": 0.245}),
        (said("a") + said("b", certainty=0.5), {"a": 0.5, "b": 0.175}),
    ],
)
def test_weights_fall_with_each_value_named_since(
    recent: list[Named], expected: dict[str, float]
) -> None:
    """0.5 for the newest, 0.7 of it for each value named after it, times how certain it is."""
    assert weights(recent) == pytest.approx(expected)


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from("abcdefghij"), st.sampled_from([0.3, 0.6, 1.0])), max_size=3
        ),
        max_size=12,
    )
)
def test_any_turns_agree_with_the_naive_list(turns: list[list[tuple[str, float]]]) -> None:
    """The order is that of first sight, newest turn first; the certainty is the greatest of all."""
    found = merged(
        [[Named(value, certainty, "partial") for value, certainty in turn] for turn in turns]
    )
    flat = [pair for turn in turns for pair in turn]
    order = list(dict.fromkeys(value for value, _ in flat))
    assert values_of(found) == order[:KEPT]
    for each in found:
        assert each.certainty == max(certainty for value, certainty in flat if value == each.value)
