"""Words of spoken turns: what is kept, what is folded, and that hashes never change."""

from __future__ import annotations

import threading
import unicodedata
from hashlib import blake2b

import numpy as np
import pytest
import Stemmer
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.text import ANALYZER, is_filler, sentences, squash, term_ids, terms, words

PHRASES = (
    "don't I'm uh the refund refunds running $1,049.99 AB-12 caf\u00e9 \u2018quoted\u2019 Stra\u00dfe"
    " \uff17 p.m. no 1.2.3 mm-hmm"
)
# Lone surrogates included: a recogniser's bytes may have been decoded badly.
SPOKEN = st.text(st.characters(), max_size=60) | st.lists(st.sampled_from(PHRASES.split())).map(
    " ".join
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \t\n ", []),
        ("?! -- ...", []),
        ("I don't know, it's John's.", ["i", "don't", "know", "it's", "john's"]),
        ("don\u2019t don\u02bct don`t", ["don't", "don't", "don't"]),
        ("\u2018quoted\u2019 'quoted'", ["quoted", "quoted"]),
        ("CAFÉ cafe\u0301 Straße", ["cafe", "cafe", "strasse"]),
        ("$1,049.99 or 3,000,000", ["1049.99", "or", "3000000"]),
        ("1,2,3 and 12,34", ["1", "2", "3", "and", "12", "34"]),
        ("at 7:30 p.m.", ["at", "7", "30", "p", "m"]),
        ("order AB-12, order_id X9Y", ["order", "ab", "12", "order", "id", "x9y"]),
        ("5.5 stars. Version 1.2.3.", ["5.5", "stars", "version", "1.2.3"]),
        ("\uff11\uff12 \u2460 \ufb01ne", ["12", "1", "fine"]),
        ("mm-hmm", ["mm", "hmm"]),
        ("日本 привет", ["日本", "привет"]),
    ],
)
def test_words_are_normalised(text: str, expected: list[str]) -> None:
    """Case, accents, apostrophes and punctuation are folded; numbers and codes are kept."""
    assert words(text) == expected


@settings(deadline=None)
@given(SPOKEN)
def test_normalising_is_idempotent(text: str) -> None:
    """The words of a text's words are those words, so that squashed text is a fixed key."""
    assert words(squash(text)) == words(text)


@settings(deadline=None)
@given(SPOKEN)
def test_case_and_form_do_not_matter(text: str) -> None:
    """A text and its canonical decomposition say the same."""
    assert words(unicodedata.normalize("NFD", text)) == words(text)


def test_a_text_without_a_space_becomes_words_of_bounded_length() -> None:
    """A megabyte without a space does not put a megabyte into a cache."""
    assert max(map(len, words("x" * 1_000_000))) == 64


def test_terms_drop_function_words_but_never_all() -> None:
    """Function words go, unless nothing else was said."""
    assert terms("What are the opening hours?") == ["open", "hour"]
    assert terms("what is that") == ["what", "is", "that"]
    assert terms("uh") == ["uh"]
    assert terms("The refunds for ORDER-77s") == ["refund", "order", "77s"]
    assert terms(" ... ") == []


@settings(deadline=None)
@given(SPOKEN)
def test_terms_are_stems_of_words(text: str) -> None:
    """Each term is the Snowball stem of a word that was said, codes unchanged, in order."""
    stemmer = Stemmer.Stemmer("english", 0)
    said = iter(words(text))
    for term in terms(text):
        assert any(
            term == (word if any(map(str.isdigit, word)) else stemmer.stemWord(word))
            for word in said
        )


@settings(deadline=None)
@given(SPOKEN)
def test_ids_are_hashes_of_terms(text: str) -> None:
    """An id is the documented hash of its term, cached or not."""
    expected = [
        int.from_bytes(blake2b(term.encode(), digest_size=8).digest(), "little", signed=True)
        for term in terms(text)
    ]
    ids = term_ids(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected
    assert term_ids(text).tolist() == expected


def test_stored_hashes_stay_as_they_are() -> None:
    """Golden: postings of this analyzer are on disks; a change here needs a new ANALYZER."""
    assert ANALYZER == "en-1"
    assert terms("Customers' billing addresses were generously refunded, 49.99") == [
        "custom",
        "bill",
        "address",
        "generous",
        "refund",
        "49.99",
    ]
    assert term_ids("refunded 49.99").tolist() == GOLDEN_IDS


GOLDEN_IDS = [-2761346984152634254, 4358919004185102319]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "uh",
        "Um, uhh... ummm",
        "mm-hmm",
        "Mhm.",
        "uh-huh",
        "Okay.",
        "uh yeah okay",
        "right right right",
        "You know, I mean... yeah!",
        "Got it, thanks.",
        "thank you so much, bye bye",
        "all right, that makes sense",
        "hello?",
    ],
)
def test_fillers_carry_nothing(text: str) -> None:
    """Blanks, hesitations, backchannels and courtesies are fillers, however many are joined."""
    assert is_filler(text)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes please",
        "right so what about parking",
        "okay 42",
        "what",
        "you",
        "human",
        "hum the tune",
        "do you know",
        "M",
        "uh refund",
        "I see two charges",
        "good morning how much",
        "日本",
    ],
)
def test_answers_and_questions_are_no_fillers(text: str) -> None:
    """Whatever could ask for knowledge, with what was said before, is worth a query."""
    assert not is_filler(text)


def test_a_long_run_of_fillers_is_decided_in_linear_time() -> None:
    """No text makes the matching backtrack: a hundred thousand words take no more than a moment."""
    assert is_filler("uh okay you know i see " * 20_000)
    assert not is_filler("uh okay you know i see " * 20_000 + "refund")
    assert not is_filler("m" * 100_000 + "x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("no end", ["no end"]),
        ("I am Dr. Smith. Hello.", ["I am Dr. Smith.", "Hello."]),
        ("at 7 p. m. today. Yes.", ["at 7 p. m. today.", "Yes."]),
        ('He said "Go!" Then left.', ['He said "Go!"', "Then left."]),
        ("It costs 3.50 now... Really?", ["It costs 3.50 now...", "Really?"]),
        ("a line\nMr.\nanother", ["a line", "Mr.", "another"]),
        ("日本。東京\uff1fはい", ["日本。", "東京\uff1f", "はい"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    """Sentences end at their marks and at lines, not after abbreviations."""
    assert sentences(text) == expected


@settings(deadline=None)
@given(st.text(st.sampled_from("ab .!?\n\"'Dr。)…1\r"), max_size=40) | SPOKEN)
def test_sentences_lose_nothing(text: str) -> None:
    """Together the sentences hold every character but white space, in order, and none is blank."""
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(one == one.strip() != "" for one in found)


def test_threads_may_stem_at_once() -> None:
    """Threads that meet new words at the same time get what one thread alone gets."""
    texts = [
        f"wandering{chr(97 + i % 26)}{chr(97 + i // 26)}ings nationalities" for i in range(400)
    ]
    results: list[list[list[str]]] = []
    start = threading.Barrier(4)

    def run() -> None:
        start.wait()
        results.append([terms(text) for text in texts])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stemmer = Stemmer.Stemmer("english", 0)
    expected = [[stemmer.stemWord(word) for word in text.split()] for text in texts]
    assert results == [expected] * 4
