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


def once(*forms: str) -> dict[str, float]:
    """Forms that count what a word of the text counts."""
    return dict.fromkeys(forms, 1.0)


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        # half a word per character, and never less than one
        ("nine four one zero two", {"94102": 2.5}),
        ("my zip is nine four one oh two okay", {"94102": 2.5}),
        ("five five five, oh one nine nine", {"5550199": 3.5}),
        ("room one oh four", {"104": 1.5}),
        ("eight hundred and four", {"804": 1.5}),
        ("one thousand two hundred", {"1200": 2.0}),
        ("nine niner nine", {"999": 1.5}),
        ("room twelve", {"12": 1.0}),
        # read in pairs or as a whole; the parts too, since what is stored may have them apart
        ("double four seven oh one", {"44701": 2.5, "44": 1.0}),
        ("twenty twenty four", {"2024": 2.0, "20": 1.0, "24": 1.0}),
        ("nineteen eighty four", {"1984": 2.0, "19": 1.0, "84": 1.0}),
        # letters, spelled out or with an example
        ("w o 8 b t x", {"wo8btx": 3.0}),
        ("k l eight b t x", {"kl8btx": 3.0}),
        ("it is b as in boy two", {"b2": 1.0}),
        ("d for delta nine nine", {"d99": 1.5}),
        # an "o" among digits is a zero, or the letter; an "oh" is a zero
        ("w o eight b t x", {"w08btx": 3.0, "wo8btx": 3.0}),
        ("nine four one o two", {"94102": 2.5, "941o2": 2.5}),
        ("w oh eight b t x", {"w08btx": 3.0}),
        # amounts and times
        ("at seven thirty", {"730": 1.5, "30": 1.0}),
        # a lone digit is a count or an hour
        ("at seven", {}),
        ("i have one question", {}),
        # another word ends a number; a comma, which may be a breath, does not
        ("two to three people", {}),
        ("one two, four or five six", {"124": 1.5, "56": 1.0}),
    ],
)
def test_what_is_said_has_its_digits(text: str, forms: dict[str, float]) -> None:
    """Number words, and letters among them, become what would be written, and count by its length."""
    assert other_forms(text) == pytest.approx(forms)


@pytest.mark.parametrize(
    ("text", "forms"),
    [
        ("94102", once("nine", "four", "one", "zero", "two")),
        ("what was 94102 again?", once("nine", "four", "one", "zero", "two")),
        # each word once: it is looked up, not said
        ("44701", once("four", "seven", "zero", "one")),
        # in groups: as one, too
        ("call me at 555 0199", {"5550199": 3.5, **once("five", "zero", "one", "nine")}),
        ("415-555-0199", {"4155550199": 5.0, **once("four", "one", "five", "zero", "nine")}),
        ("9 4 1 0 2", {"94102": 2.5, **once("nine", "four", "one", "zero", "two")}),
        ("room 104", once("one", "zero", "four")),
        # too short to be told from a count or an hour
        ("room 12", {}),
        ("3 nights for 2 people", {}),
        ("42 dollars", {}),
        # amounts, times and dates are not read out digit by digit
        ("it was $500 in all", {}),
        ("at 10:45", {}),
        ("on 05/01/2024", {}),
        ("on 05.01.2024", {}),
        ("it cost 1,000", {}),
        ("it cost 104.50", {}),
        # a lone letter beside it is none of it where it is a word; letters alone are no number
        ("is it a 12 hour drive", {}),
        ("is it b c in room 12", {}),
        # with letters it is a code, of which the digits alone are not read out
        ("seat 104 b", {"104b": 2.0}),
        # two numbers, not one
        ("rooms 104 & 105", once("one", "zero", "four", "five")),
        # too long for a code
        ("1234567890123456789012345", {}),
    ],
)
def test_what_is_written_has_its_words(text: str, forms: dict[str, float]) -> None:
    """Three digits or more become the words that they are read out with, and groups their whole."""
    assert other_forms(text) == pytest.approx(forms)


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
    assert other_forms(text) == {}


@example("00000")
@given(st.text("0123456789", min_size=3, max_size=24))
def test_any_number_has_both_forms(digits: str) -> None:
    """Read out digit by digit it is the number, and the number has the words that it is read out with."""
    read_out = " ".join(SPELLED[int(digit)] for digit in digits)
    assert other_forms(read_out) == {digits: len(digits) / 2}
    assert other_forms(digits) == dict.fromkeys(read_out.split(), 1.0)


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
    """Whatever is asked, each form is a word that a document can hold, and counts by its length."""
    for form, weight in other_forms(text).items():
        assert term_ids(form).size > 0
        assert 1 < len(form) <= 24
        assert 1.0 <= weight <= max(1.0, len(form) / 2)


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


async def test_a_turn_recalls_the_one_in_which_its_number_was_read_out() -> None:
    """Also as a turn of the dialogue, which asks nothing: by the words that it was read out with."""
    model = SpokenWords()
    session = SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())
    call = await CallMemory.open(session, deadline_ms=60_000, min_score=0.0)
    for text in CHATTER:
        await call.heard(text)
    said = await call.heard("it is four one five, five five five, oh one nine nine")
    for text in CHATTER:
        await call.heard(text, speaker="agent")
    context = await call.context("4155550199")
    assert context.hits[0].id == said
    assert [hit.id for hit in context.hits if hit.parts.keyword] == [said]
    await call.discard()


@pytest.mark.parametrize("before", ["", "you gave me "])
async def test_a_number_outranks_ordinary_words(before: str) -> None:
    """What is asked with "nine four one zero two" is 94102, not what was said of four, or of one and two.

    Each of these words is in one turn alone, so that all are worth the same: the others share one with
    the query, and two, and the number counts two and a half.
    """
    model = SpokenWords(dim=4096, silent="nine four one zero two")
    session = SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())
    call = await CallMemory.open(
        session, deadline_ms=60_000, min_score=0.0, top_k=9, without=["neighbours", "recency"]
    )
    said = [f"{before}94102", "there are four of us", "one or two of them came"]
    for text in (*said, *CHATTER):
        await call.heard(text)
    hits = await call.recall("nine four one zero two")
    by_words = {hit.text: hit.parts.keyword for hit in hits if hit.parts.keyword}
    assert set(by_words) == set(said)
    assert max(by_words, key=by_words.__getitem__) == said[0]
    assert hits[0].text == said[0]
    await call.discard()
