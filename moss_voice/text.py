"""Text in, words out: what a spoken turn says, normalised so that equal words look equal.

Everything here is a pure function of its text and the same in every process; `ANALYZER` names the
rules of `term_ids`, and changes whenever they would give another result, because hashes are stored.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt
import Stemmer

__all__ = ["ANALYZER", "asks", "is_filler", "sentences", "squash", "term_ids", "terms", "words"]

I64 = npt.NDArray[np.int64]

ANALYZER: Final[str] = "en-1"

# Words kept in each cache: more than any call says, and under 8 MB at the worst.
_CACHED_WORDS: Final = 1 << 15

# Thousands and decimals stay one number; hyphens and slashes divide ("check-in" is "check in"), and so
# do underscores. The bound keeps a megabyte without a space from becoming one word in a cache.
_WORD: Final = re.compile(
    r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![^\W_])"
    r"|\d+(?:\.\d+)+(?![^\W_])"
    r"|[^\W_]{1,64}(?:'[^\W_]{1,64}){0,3}"
)
_THOUSANDS: Final = re.compile(r"\d,\d")
_APOSTROPHES: Final = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u02b9\u2032\u0060\u00b4\u1ffd", "'")
)
_ACCENT: Final = re.compile("[\u0300-\u036f]+")

# Words that shape a sentence and say nothing about its subject, with their contractions as speech
# recognisers write them, and hesitations. Small on purpose: the idf of BM25 does the rest.
_FUNCTION_TEXT: Final = (
    "a an the and or but if so as of at by for from in into on to with about"
    " i me my mine you your yours he him his she her hers it its we us our ours they them their"
    " this that these those there here"
    " am is are was were be been being do does did have has had will would can could shall should"
    " may might must what which who whom how just then than too very also like"
    " i'm i'd i've i'll you're you'd you've you'll he's she's it's we're we'd we've we'll they're"
    " they'd they've they'll that's there's here's what's who's how's let's"
    " im ive youre youve thats theres whats lets"
    " n't ll re ve uh uhh um umm ummm uhm er erm ah oh hm hmm mm mhm"
)
_FUNCTION_WORDS: Final = frozenset(_FUNCTION_TEXT.split())

# Matched against whole words joined by spaces. No phrase can be read as two others, so that the
# repetition never backtracks.
_FILLER: Final = re.compile(
    r"(?:(?:u+h*m+|u+h+|h+m+|m{2,}|m+h+m+|a+h+|o+h+|e+r+m*|hu+h|nu+h|eh|aha|wow|gosh|gee|whoa"
    r"|ok|okay|okey|kay|mkay|o k|alright|alrighty|all right|right|yeah+|yea|yep|yup|ya|sure"
    r"|well|so+|and|but|like|anyway|anyways|actually|basically|literally|really|exactly|absolutely"
    r"|definitely|totally|perfect|great|good|fine|cool|nice|awesome|excellent|wonderful|lovely"
    r"|you know|ya know|i mean|i see|i know|i guess|i think|kind of|kinda|sort of|sorta|got it"
    r"|gotcha|i got it|i got you|got you|makes sense|that makes sense|of course|fair enough|let's see"
    r"|let me see|no problem|no worries|sounds good|sounds great|that sounds good|that sounds great"
    r"|that's right|that's fine|that's good|that's great|go ahead"
    r"|hi|hello|hey|bye|goodbye|thanks|thank you|thank you so much|thank you very much"
    r"|thanks so much|thanks a lot)(?: |\Z))*"
)

# How English asks: a question mark, a question word, or a verb before its subject, which a recogniser
# leaves when it drops the mark.
_ASKS: Final = re.compile(
    r"\?|\b(?:what|which|how|where|when|who|whose|why|whether|any)\b"
    r"|\b(?:do|does|did|is|are|was|were|can|could|will|would|has|have|should|may) "
    r"(?:they|it|you|there|we|i|he|she|this|that|the|these|those|my|your)\b"
)

_SENTENCE_END: Final = re.compile(
    r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+|(?<=[\u3002\uff01\uff1f])\s*|\s*[\r\n]\s*"
)
# A full stop after these, or after a lone letter ("p. m.", "J. Smith"), ends no sentence.
_ABBREVIATION: Final = re.compile(
    r"(?:^|[^\w])(?:[^\W\d_]|mr|mrs|ms|dr|st|vs|etc|e\.g|i\.e|no|prof|approx|dept|apt|ave|blvd|inc|ltd)\.$",
    re.IGNORECASE,
)

_stemmer: Final = Stemmer.Stemmer("english", 0)
# A stemmer must not be called by two threads at once; only words new to the caches get here.
_stemming: Final = threading.Lock()


def _normal(text: str) -> str:
    # Most turns are ASCII, for which every step but the case is nothing to do. A backtick is the one
    # ASCII character that stands for an apostrophe.
    if text.isascii():
        return text.lower().replace("`", "'")
    folded = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).casefold()
    return unicodedata.normalize("NFKC", _ACCENT.sub("", folded)).translate(_APOSTROPHES)


def words(text: str) -> list[str]:
    """Return the words of a text, normalised, in order.

    Compatibility forms (NFKC), case and Latin accents are folded, since a caption writes "Café" and a
    recogniser "cafe"; curly apostrophes become straight ones and stay inside words; other punctuation
    is dropped. Numbers and codes are kept: "1,000" is "1000", "49.99" stays one word, "AB-12" is "ab"
    and "12".

    Args:
        text: Any text.

    Returns:
        Each word in lower case, at most 64 letters between apostrophes. About 3 us for a turn.
    """
    normal = _normal(text)
    found: list[str] = _WORD.findall(normal)
    if "," in normal and _THOUSANDS.search(normal):
        return [word.replace(",", "") for word in found]
    return found


@lru_cache(_CACHED_WORDS)
def _stem(word: str) -> str:
    if not word.isalpha() and any(map(str.isdigit, word)):
        # A code or a number has no suffix.
        return word
    with _stemming:
        return str(_stemmer.stemWord(word))


def _hash(stem: str) -> int:
    # 0 stands for "no term" below; one stem in 2**64 makes room for it.
    return (
        int.from_bytes(blake2b(stem.encode(), digest_size=8).digest(), "little", signed=True) or 1
    )


@lru_cache(_CACHED_WORDS)
def _content_id(word: str) -> int:
    return 0 if word in _FUNCTION_WORDS else _hash(_stem(word))


def terms(text: str) -> list[str]:
    """Return the stems of a text's words, without function words.

    "To be or not to be" must remain findable, so function words are left out only where something
    else remains.

    Args:
        text: Any text.

    Returns:
        One Snowball English stem per occurrence, in order.
    """
    said = words(text)
    content = [word for word in said if word not in _FUNCTION_WORDS]
    return [_stem(word) for word in content or said]


def term_ids(text: str) -> I64:
    """Return the 64-bit hash of each of a text's terms.

    Hashes let postings do without a vocabulary and be the same in every process. At 10 million
    distinct stems the chance of any collision is about 1 in 400,000.

    Args:
        text: Any text.

    Returns:
        (n,) int64, one per entry of `terms(text)`, in order: blake2b of the stem in UTF-8,
        `digest_size=8`, little-endian, signed. About 6 us for a turn of known words.
    """
    said = words(text)
    content = list(filter(None, map(_content_id, said)))
    return np.array(content or [_hash(_stem(word)) for word in said], np.int64)


def is_filler(text: str) -> bool:
    """Tell whether a turn carries nothing worth a query.

    That is a blank, punctuation alone, hesitations ("uh, um"), backchannels ("mm-hmm", "yeah okay",
    "got it", "that makes sense"), greetings and thanks, in any number. A "yes" or a "no" is an answer
    and no filler: with the question before it, it can ask for knowledge.
    """
    return _FILLER.fullmatch(squash(text)) is not None


def asks(text: str) -> bool:
    """Tell whether a turn asks something, by its form: English, and without looking at what is meant."""
    return _ASKS.search(_normal(text)) is not None


def squash(text: str) -> str:
    """Return the words of a text joined by spaces: equal for two texts that say the same words."""
    return " ".join(words(text))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, stripped, in order; none is blank.

    Lines always end a sentence; a full stop does unless it follows a known abbreviation or a lone
    letter, as in spelled names. Nothing is lost but the white space between sentences.
    """
    return list(_join_abbreviations(_pieces(text)))


def _pieces(text: str) -> Iterable[tuple[str, bool]]:
    """Yield each piece with whether a line ended after it."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        gap = end.group()
        stop = end.end() - len(gap.lstrip("\"'\u201d\u2019)]"))
        yield text[start:stop].strip(), "\n" in gap or "\r" in gap
        start = end.end()
    yield text[start:].strip(), True


def _join_abbreviations(pieces: Iterable[tuple[str, bool]]) -> Iterable[str]:
    held = ""
    for piece, ends_line in pieces:
        sentence = f"{held} {piece}".strip()
        if not ends_line and _ABBREVIATION.search(sentence):
            held = sentence
        else:
            held = ""
            if sentence:
                yield sentence
