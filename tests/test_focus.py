"""What a call is about: values named, newest first, forgotten when their turn is corrected."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.call.focus import Focus, merged, weights
from moss_voice.call.names import Named

KEPT_VALUES = 8
KEPT_TURNS = 64


def said(*values: str, certainty: float = 1.0) -> list[Named]:
    return [Named(value, certainty, "exact" if certainty == 1.0 else "partial") for value in values]


def values_of(named: list[Named]) -> list[str]:
    return [each.value for each in named]


def test_the_newest_is_first() -> None:
    """Values come newest turn first, within a turn as they were named; one named again is new again."""
    focus = Focus()
    assert focus.recent() == []
    focus.heard("1", said("Astoria"))
    focus.heard("2", said("Bristol", "Corona"))
    assert values_of(focus.recent()) == ["Bristol", "Corona", "Astoria"]
    focus.heard("3", said("Astoria"))
    assert values_of(focus.recent()) == ["Astoria", "Bristol", "Corona"]
    assert repr(focus) == "<Focus on 3 values>"


def test_a_turn_that_names_nothing_changes_nothing() -> None:
    """Talk about what was named keeps it in its place."""
    focus = Focus()
    focus.heard("1", said("Astoria"))
    before = focus.recent()
    focus.heard("2", [])
    assert focus.recent() == before


def test_what_a_corrected_turn_names_stands_in_its_place() -> None:
    """The old value is forgotten; the new one is as old as the turn, and not the newest for it."""
    focus = Focus()
    for turn, value in (("1", "Astoria"), ("2", "Bristol"), ("3", "Corona")):
        focus.heard(turn, said(value))
    focus.heard("2", said("Dorset"))
    assert values_of(focus.recent()) == ["Corona", "Dorset", "Astoria"]


def test_a_correction_that_names_nothing_forgets() -> None:
    """What was never said is not in focus, unless another turn said it."""
    focus = Focus()
    focus.heard("1", said("Astoria"))
    focus.heard("2", said("Bristol", "Astoria"))
    focus.heard("2", iter(()))
    assert values_of(focus.recent()) == ["Astoria"]
    focus.heard("1", [])
    assert focus.recent() == []
    focus.heard("nobody", [])
    assert focus.recent() == []


def test_a_value_is_as_certain_as_it_ever_was() -> None:
    """A vague mention later does not make it less certain, a clear one later makes it more."""
    focus = Focus()
    focus.heard("1", said("Astoria"))
    focus.heard("2", said("Bristol", certainty=0.5))
    focus.heard("3", said("Astoria", certainty=0.7))
    focus.heard("4", said("Bristol", certainty=0.9))
    assert [(each.value, each.certainty) for each in focus.recent()] == [
        ("Bristol", 0.9),
        ("Astoria", 1.0),
    ]
    # The certainty of a correction counts, not that of what was corrected.
    focus.heard("1", [])
    assert focus.recent()[1] == Named("Astoria", 0.7, "partial")


def test_some_turns_can_be_passed_over() -> None:
    """The turn that is being answered does not count twice; the others do, in order."""
    focus = Focus()
    for turn, value in (("1", "Astoria"), ("2", "Bristol"), ("3", "Astoria")):
        focus.heard(turn, said(value))
    assert values_of(focus.recent(without=["3", "nobody"])) == ["Bristol", "Astoria"]
    assert focus.recent(without={"1", "2", "3"}) == []
    assert values_of(focus.recent()) == ["Astoria", "Bristol"]


def test_turns_are_read_again_where_they_stand() -> None:
    """What turns name by names that are known since goes in their places; other turns stay as they are."""
    focus = Focus()
    focus.heard("2", said("Bristol"))
    focus.heard("4", said("Dorset"))
    focus.heard("gone", said("Exeter"))
    focus.read_again(
        {"1": said("Astoria"), "3": said("Corona"), "4": [], "5": []}, ["1", "2", "3", "4", "5"]
    )
    assert values_of(focus.recent()) == ["Corona", "Bristol", "Astoria"]
    focus.heard("2", said("Essex"))
    assert values_of(focus.recent()) == ["Corona", "Essex", "Astoria"]


def test_the_lists_stay_short() -> None:
    """Of a long call the last 64 turns that named something are known, and the last 8 values."""
    focus = Focus()
    for n in range(200):
        focus.heard(f"{n}", said(f"v{n}"))
    assert values_of(focus.recent()) == [f"v{n}" for n in range(199, 199 - KEPT_VALUES, -1)]
    newest = [f"{n}" for n in range(200 - KEPT_TURNS, 200)]
    assert focus.recent(without=newest) == []
    assert values_of(focus.recent(without=newest[1:])) == [f"v{200 - KEPT_TURNS}"]


def test_merging_puts_the_turn_before_what_was_said() -> None:
    """What the turn names comes first, and is as certain as it was anywhere."""
    turn = said("Bristol", certainty=0.5)
    before = [*said("Astoria", certainty=0.9), *said("Bristol")]
    assert [(each.value, each.certainty) for each in merged(turn, before)] == [
        ("Bristol", 1.0),
        ("Astoria", 0.9),
    ]
    assert merged() == merged([], []) == []
    assert turn == said("Bristol", certainty=0.5)


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        ([], {}),
        (said("a"), {"a": 0.5}),
        (said("a", "b", "c"), {"a": 0.5, "b": 0.35, "c": 0.245}),
        # less for what is less certain, wherever it stands
        ([*said("a"), *said("b", certainty=0.6)], {"a": 0.5, "b": 0.21}),
        ([*said("a", certainty=0.5), *said("b")], {"a": 0.25, "b": 0.35}),
    ],
)
def test_weights_fall_with_each_value_named_since(
    recent: list[Named], expected: dict[str, float]
) -> None:
    """The value that k others were named after weighs 0.5 * 0.7**k, times its certainty."""
    assert weights(recent) == pytest.approx(expected)


turns = st.lists(
    st.tuples(
        st.integers(0, 9).map(str),
        st.lists(
            st.builds(
                Named,
                st.integers(0, 12).map(str),
                st.sampled_from([0.5, 0.7, 0.9, 1.0]),
                st.just("exact"),
            ),
            max_size=4,
        ),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(turns, st.sets(st.integers(0, 9).map(str), max_size=3))
def test_any_run_of_turns_and_corrections_agrees_with_the_naive_list(
    heard: list[tuple[str, list[Named]]], without: set[str]
) -> None:
    """The values are those of the turns as they stand, read backwards, each with its greatest certainty."""
    focus = Focus()
    turns: list[tuple[str, list[Named]]] = []
    for id_, named in heard:
        focus.heard(id_, named)
        at = next((at for at, (known, _) in enumerate(turns) if known == id_), None)
        if at is None:
            turns.append((id_, named))
        elif named:
            turns[at] = id_, named
        else:
            del turns[at]
        # What names nothing has no place to keep.
        turns = [turn for turn in turns if turn[1]]
    standing = [each for id_, named in reversed(turns) if id_ not in without for each in named]
    expected = {
        value: max(each.certainty for each in standing if each.value == value)
        for value in dict.fromkeys(each.value for each in standing)
    }
    recent = focus.recent(without=without)
    assert [(each.value, each.certainty) for each in recent] == list(expected.items())[:KEPT_VALUES]
