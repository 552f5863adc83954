"""What a turn makes of the utterances before it: each is taken in or passed over once, or waits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.call.utterances import Utterance, Utterances
from moss_voice.text import squash


def waiting(*told: tuple[str, str, float]) -> Utterances:
    """Note utterances of the caller, given as id, text and seconds."""
    utterances = Utterances()
    for id_, text, at_s in told:
        utterances.add(Utterance(id_, text, "caller", at_s))
    return utterances


def names(utterances: list[Utterance]) -> str:
    return " ".join(utterance.id for utterance in utterances)


THREE = (("a", "I would like", 1.0), ("b", "to change my booking.", 3.0), ("c", "please", 5.0))


@pytest.mark.parametrize(
    ("text", "began_s", "taken", "passed"),
    [
        # Without a time the words decide.
        ("I would like to change my booking please", None, "a b c", ""),
        ("to change my booking please", None, "b c", "a"),
        ("please", None, "c", "a b"),
        # From the first whose words it has: a word that was rewritten later on belongs to it too.
        ("I would like to alter my booking, please", None, "a b c", ""),
        ("I'd like to change my booking", None, "b c", "a"),
        # None of its words: a host may have rewritten all of it.
        ("[redacted]", None, "a b c", ""),
        ("", None, "a b c", ""),
        # Words count, not letters, case or punctuation.
        ("I WOULD, like... to change my booking?", None, "a b c", ""),
        ("pleased to meet you", None, "a b c", ""),
        # With a time: what was said since, whatever the words.
        ("[redacted]", 0.9, "a b c", ""),
        ("[redacted]", 2.5, "b c", "a"),
        ("[redacted]", 4.5, "c", "a b"),
        ("[redacted]", 9.0, "", "a b c"),
        # Clocks differ by a little.
        ("[redacted]", 3.04, "b c", "a"),
        ("[redacted]", 3.06, "c", "a b"),
        # And what was said before where the turn has its words.
        ("I would like to change my booking please", 9.0, "a b c", ""),
        ("I would like that, please", 4.0, "a c", "b"),
        ("I would like it", 9.0, "a", "b c"),
    ],
)
def test_what_a_turn_takes_in_and_passes_over(
    text: str, began_s: float | None, taken: str, passed: str
) -> None:
    """A hand-made table: with the time a turn began by time and words, without it by words alone."""
    utterances = waiting(*THREE)
    took, left = utterances.settle(text, "caller", began_s)
    assert (names(took), names(left)) == (taken, passed)
    assert len(utterances) == 0
    assert utterances.take_all() == []


def test_nothing_waits_and_nothing_comes() -> None:
    """A turn of which no utterance was noted settles nothing."""
    for began_s in (None, 1.0):
        assert Utterances().settle("hello", "caller", began_s) == ([], [])


@pytest.mark.parametrize("began_s", [None, 0.0, 99.0])
def test_what_holds_no_words_is_in_no_turn_for_its_words(began_s: float | None) -> None:
    """A recogniser's "..." is taken in by the time it came at, or beside words; never for being empty."""
    utterances = waiting(("dots", "...", 1.0), ("b", "my booking", 2.0))
    took, left = utterances.settle("my booking", "caller", began_s)
    assert (names(took), names(left)) == (("dots b", "") if began_s == 0.0 else ("b", "dots"))


@pytest.mark.parametrize("began_s", [None, 0.0, 99.0])
def test_each_speaker_has_utterances_of_their_own(began_s: float | None) -> None:
    """A turn settles those of its speaker, whatever others said, who keep theirs for their own turn."""
    utterances = Utterances()
    for id_, speaker in [("a", "Ann"), ("b", "Ben"), ("c", "Ann"), ("d", "Ben")]:
        utterances.add(Utterance(id_, "yes please", speaker, 1.0))
    assert utterances.settle("yes please", "agent", began_s) == ([], [])
    took, left = utterances.settle("yes please yes please", "Ann", began_s)
    assert (names(took), names(left)) == ("a c", "")
    assert names(list(utterances)) == "b d"
    took, _ = utterances.settle("yes please", "Ben", began_s)
    assert names(took) == "b d"
    assert len(utterances) == 0


def test_the_same_id_is_a_correction_and_keeps_its_place() -> None:
    """The old text is gone, the new one stands where it stood; once settled, an id is a new utterance."""
    utterances = waiting(("a", "my coat", 1.0), ("b", "is bravo", 2.0), ("a", "my code", 1.5))
    assert len(utterances) == 2
    took, _ = utterances.settle("my code is bravo", "caller", None)
    assert took == [
        Utterance("a", "my code", "caller", 1.5),
        Utterance("b", "is bravo", "caller", 2.0),
    ]
    utterances.add(Utterance("a", "my coat", "caller", 9.0))
    assert names(utterances.take_all()) == "a"
    assert len(utterances) == 0


def test_what_is_listed_is_a_copy() -> None:
    """Who goes through the waiting ones may settle them meanwhile."""
    utterances = waiting(*THREE)
    for _ in utterances:
        utterances.take_all()
    assert len(utterances) == 0


texts = st.lists(st.sampled_from(["yes", "no", "my", "code", "..."]), max_size=4).map(" ".join)
speakers = st.sampled_from(["caller", "other"])
seconds = st.floats(0.0, 10.0)
steps = st.lists(
    st.builds(Utterance, st.sampled_from("abcdefgh"), texts, speakers, seconds)
    | st.tuples(texts, speakers, st.none() | seconds),
    max_size=25,
)


def holds(text: str, part: str) -> bool:
    """Tell whether a part's words stand in a text, one after another; the naive way."""
    words, few = squash(text).split(), squash(part).split()
    if not few or not words:
        return few == words
    return any(words[n : n + len(few)] == few for n in range(len(words)))


def told_to_take(
    theirs: list[Utterance], text: str, began_s: float | None
) -> tuple[list[Utterance], list[Utterance]]:
    """Say again what `settle` promises, case by case."""
    if began_s is None:
        first = 0
        while first < len(theirs) and not holds(text, theirs[first].text):
            first += 1
        first %= max(1, len(theirs))
        return theirs[first:], theirs[:first]
    inside = [u for u in theirs if holds(text, u.text) or u.at_s >= began_s - 0.05]
    return inside, [u for u in theirs if u not in inside]


@settings(deadline=None, max_examples=300)
@given(steps)
def test_every_utterance_ends_once(told: list[Utterance | tuple[str, str, float | None]]) -> None:
    """The law: whatever comes, each utterance is taken in once, or passed over once, or left at the end."""
    utterances = Utterances()
    noted: dict[str, Utterance] = {}
    for step in told:
        if isinstance(step, Utterance):
            utterances.add(step)
            noted[step.id] = step
        else:
            text, speaker, began_s = step
            theirs = [u for u in noted.values() if u.speaker == speaker]
            took, passed = utterances.settle(text, speaker, began_s)
            assert (took, passed) == told_to_take(theirs, text, began_s)
            assert sorted(took + passed) == sorted(theirs)
            for utterance in took + passed:
                del noted[utterance.id]
        assert list(utterances) == list(noted.values())
        assert len(utterances) == len(noted)
    assert utterances.take_all() == list(noted.values())
    assert utterances.take_all() == []
