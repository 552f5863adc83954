"""Numbers and codes: what was said is found by what is written, and the other way round."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moss_voice.call.memory import CallMemory
from moss_voice.call.numbers import other_forms
from moss_voice.session import SessionIndex
from moss_voice.text import term_ids
from moss_voice.types import Hit
from tests.spoken_words import MODEL, SpokenWords, new_remote

SPELLED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("nine four one zero two", ["94102"]),
        ("my zip is nine four one oh two okay", ["94102"]),
        ("double four seven oh one", ["44701", "44"]),
        ("five five five, oh one nine nine", ["5550199"]),
        # read in pairs or as a whole; the parts too, since what is stored may have them apart
        ("twenty twenty four", ["2024", "20", "24"]),
        ("nineteen eighty four", ["1984", "19", "84"]),
        ("room one oh four", ["104"]),
        ("eight hundred and four", ["804"]),
        ("one thousand two hundred", ["1200"]),
        ("room twelve", ["12"]),
        ("nine niner nine", ["999"]),
        # letters, spelled out or with an example
        ("w o 8 b t x", ["wo8btx"]),
        ("k l eight b t x", ["kl8btx"]),
        ("it is b as in boy two", ["b2"]),
        ("d for delta nine nine", ["d99"]),
        # amounts and times
        ("it costs forty two dollars", ["42"]),
        ("five hundred dollars", ["500"]),
        ("at seven thirty", ["730", "30"]),
        # a pause ends a number
        ("two to three people", ["2", "3"]),
    ],
)
def test_what_is_said_has_its_digits(text: str, forms: list[str]) -> None:
    """Number words, and letters among them, become what would be written."""
    assert other_forms(text) == forms


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("94102", ["nine", "four", "one", "zero", "two"]),
        ("what was 94102 again?", ["nine", "four", "one", "zero", "two"]),
        # each word once: it is looked up, not said
        ("44701", ["four", "seven", "zero", "one"]),
        # in groups: as one, too
        ("call me at 555 0199", ["5550199", "five", "zero", "one", "nine"]),
        ("415-555-0199", ["4155550199", "four", "one", "five", "zero", "nine"]),
        ("9 4 1 0 2", ["94102", "nine", "four", "one", "zero", "two"]),
        ("room 104", ["one", "zero", "four"]),
        # too short to be told from a count or an hour
        ("room 12", []),
        ("3 nights for 2 people", []),
        ("42 dollars", []),
        # a lone letter beside it is none of it where it is a word; letters alone are no number
        ("is it a 12 hour drive", []),
        ("is it b c in room 12", []),
        # two numbers, not one
        ("rooms 104 & 105", ["one", "zero", "four", "five"]),
        # too long for a code
        ("1234567890123456789012345", []),
    ],
)
def test_what_is_written_has_its_words(text: str, forms: list[str]) -> None:
    """Three digits or more become the words that they are read out with, and groups their whole."""
    assert other_forms(text) == forms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "i would like to book a room",
        "oh i see",
        "oh okay",
        "i have a question",
        "can you double check that",
        "do you take triple a",
        "is it b or c",
        "for you and me",
        "a b c",
        "the second and the fourth",
        "great-star reviews",
        "it's o'clock somewhere",
        "a hundredth of it",
    ],
)
def test_ordinary_speech_has_no_other_form(text: str) -> None:
    """What holds no number adds nothing to a query."""
    assert other_forms(text) == []


@example("00000")
@given(st.text("0123456789", min_size=3, max_size=24))
def test_any_number_has_both_forms(digits: str) -> None:
    """Read out digit by digit it is the number, and the number has the words that it is read out with."""
    read_out = " ".join(SPELLED[int(digit)] for digit in digits)
    assert other_forms(read_out) == [digits]
    assert set(other_forms(digits)) == set(read_out.split())


@given(
    st.lists(
        st.sampled_from(
            [
                *SPELLED,
                "oh",
                "double",
                "hundred",
                "b",
                "as",
                "in",
                "boy",
                "94102",
                "7:30",
                "$5",
                ",",
                ".",
            ]
        ),
        max_size=12,
    ).map(" ".join)
    | st.text(max_size=30)
)
def test_forms_are_words_whatever_the_text(text: str) -> None:
    """Whatever is asked, each form is something that a document can hold, told once, and short."""
    forms = other_forms(text)
    assert len(set(forms)) == len(forms)
    assert all(term_ids(form).size > 0 for form in forms)
    assert all(len(form) <= 24 for form in forms)


# --- in a call -------------------------------------------------------------------------------------

CHATTER = (
    "lovely weather we have",
    "my brother moved away last summer",
    "the train was late again",
    "we would like a quiet room",
)


async def recalled(said: str, asked: str, *, without: tuple[str, ...] = ()) -> list[Hit]:
    """Return what is recalled for a query in a call in which the agent said something among chatter."""
    model = SpokenWords()
    session = SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())
    call = await CallMemory.open(
        session, deadline_ms=60_000, min_score=0.0, top_k=9, without=without
    )
    for text in CHATTER:
        await call.heard(text)
    await call.heard(said, speaker="agent")
    for text in CHATTER:
        await call.heard(text)
    hits = await call.recall(asked)
    await call.discard()
    return hits


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("nine four one zero two", "94102"),
        ("you gave me nine four one zero two", "94102"),
        ("you gave me nine four one oh two", "94102"),
        ("94102", "nine four one zero two"),
        ("you gave me 94102", "nine four one zero two"),
        ("you gave me 5550199", "555 0199"),
        ("five five five oh one nine nine", "555-0199"),
    ],
)
async def test_a_number_is_found_in_its_other_form(said: str, asked: str) -> None:
    """By its words alone, since the model knows nothing of it; not where numbers are left out."""
    found = await recalled(said, asked)
    if asked.isdecimal():
        # Each word that it was read out with speaks for it; a number is one word.
        assert found[0].text == said
    assert [hit.text for hit in found if hit.parts.keyword] == [said]
    without = await recalled(said, asked, without=("numbers",))
    assert not any(hit.parts.keyword for hit in without)
