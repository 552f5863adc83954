"""The names that a knowledge index knows, found in what a recogniser wrote.

The law: a name said in full is found, but one ordinary word needs a cue; a part of a name, or what only
sounds like it, is found where it can hardly mean anything else, and says how certain that is.

Every run of a turn's words is spelled one way (`moss_voice.call.spelling`) and looked up among the
whole names and their parts; then words that no name has are put right to the nearest that some name
has (`moss_voice.call.sounds`) and the runs with them are looked up again. The cost is that of the turn,
however many names there are. Pure and without locks; a `Names` never changes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from moss_voice.call.ordinary import ORDINARY, PEOPLE
from moss_voice.call.sounds import SHORTEST, Lexicon, Table
from moss_voice.call.spelling import SILENT, silences, spans, spell
from moss_voice.text import words as words_of

__all__ = ["Named", "Names"]

Rows = TypeVar("Rows")
How = Literal["exact", "partial", "close"]

# The most words, or letters spelled out, said for a name; the most words of a part of one.
_NAME_WORDS: Final = 12
_PART_WORDS: Final = 3
# Shorter parts are too often something else.
_PART_LETTERS: Final = 4
# A part that more names share names none of them.
_SHARED: Final = 3
# The least share of a name's own words, weighed, that a part must be.
_COVER: Final = 0.5
# What an ordinary word says of which thing is meant, where a rare one says 1.
_ORDINARY_WEIGHT: Final = 0.15
# An ordinary word in this many names says only what kind of thing it is.
_GENERIC_NAMES: Final = 3
# How certain is: a distinctive part; one that lacks only the kind of thing; a person's name for the
# business ("the Alexander"); an ordinary word after "the"; what had to be put right.
_PARTIAL: Final = 0.9
_BUT_FOR_KIND: Final = 0.8
_PERSONAL: Final = 0.7
_GUARDED: Final = 0.5
_CLOSE: Final = 0.9
# The least closeness of one word put right that is all that was said, and of two joined to one.
_CLOSE_ALONE: Final = 0.85
_CLOSE_JOINED: Final = 0.7
_CLOSE_LETTERS: Final = 7
_JOINED_LETTERS: Final = 6

_ARTICLES: Final = frozenset(("the", "a", "an"))
_CALLED: Final = frozenset(("called", "named"))
# After these comes where, and before those a street's or a district's name: no part for a name there.
_WHERE: Final = frozenset(("in", "near", "around", "to", "from"))
_PLACE_TEXT: Final = (
    "street avenue road boulevard lane drive way highway st ave square valley district height area"
    " county"
)
_PLACES: Final = frozenset(_PLACE_TEXT.split())
# What follows tells the branch: "Nopalito - Sunset District", "Souvla (Mission)".
_BRANCH: Final = re.compile(r"\s[-\u2013\u2014]\s|[(/,]")


class Named(NamedTuple):
    """A value that was named.

    Attributes:
        value: As it was given.
        certainty: How likely it was meant, in (0, 1]: 1 where its own words were said in full.
        how: "exact" for all of its words, "partial" for some, "close" where one was put right.
    """

    value: str
    certainty: float
    how: How


class _Turn(NamedTuple):
    """A turn's words, the same in their one spelling, and which of them may be passed over."""

    words: Sequence[str]
    spelled: Sequence[str]
    silent: Sequence[bool]
    before: Collection[str]


class _Run(NamedTuple):
    """The words of a turn from one to before another, and their spelling."""

    start: int
    stop: int
    spelling: str


class _Claim(NamedTuple):
    """A run of words that names some values, each with its certainty."""

    run: _Run
    named: Sequence[tuple[int, float]]
    how: How

    @property
    def order(self) -> tuple[int, bool, int]:
        """The longest first, then what was said exactly, then as spoken."""
        return self.run.start - self.run.stop, self.how != "exact", self.run.start


class _Spelling(NamedTuple):
    """The words that make a name; those from `core` on tell its branch."""

    tokens: tuple[str, ...]
    core: int


def _never(_: str) -> bool:
    return False


class Names(Generic[Rows]):
    """The names that one metadata field of a knowledge index knows, found in spoken words.

    Args:
        groups: Each value of the field, and whatever the caller wants back for it: its rows.
        common: Tells whether a word in lower case, without its plural s, is said of many of the values,
            so that it alone names none. Asked of few words of a turn.
    """

    def __init__(
        self, groups: Mapping[str, Rows], *, common: Callable[[str], bool] = _never
    ) -> None:
        self._groups = dict(groups)
        self._values = tuple(self._groups)
        self._common = common
        letters = 0
        counts: Counter[str] = Counter()
        wholes: list[int] = []
        whole_ids: list[int] = []
        parts: list[int] = []
        part_ids: list[int] = []
        for id_, value in enumerate(self._values):
            tokens, core = _spelling(value)
            if not tokens:
                continue
            wholes.append(hash("".join(tokens)))
            whole_ids.append(id_)
            counts.update(set(tokens))
            letters = max(letters, sum(map(len, tokens)))
            own = {
                hash("".join(tokens[start:stop]))
                for start in range(core)
                for stop in range(start + 1, min(start + _PART_WORDS, len(tokens)) + 1)
                if stop - start < len(tokens)
            }
            parts += own
            part_ids += [id_] * len(own)
        self._letters = letters
        self._wholes = Table(wholes, whole_ids)
        self._parts = Table(parts, part_ids)
        self._known = frozenset(counts)
        self._generic = frozenset(
            token
            for token, count in counts.items()
            if count >= _GENERIC_NAMES and token in ORDINARY
        )
        self._lexicon = Lexicon(counts, (token for token in counts if token not in ORDINARY))

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return f"<Names {len(self)} values>"

    def rows(self, value: str) -> Rows:
        """Return what was given for a value.

        Raises:
            KeyError: If the field has no such value.
        """
        return self._groups[value]

    def find(self, words: Sequence[str], *, before: Collection[str] = ()) -> list[Named]:
        """Return the values named in a turn, the longest said first, then as spoken; each once.

        A word counts for the longest name that it is in, up to 12 words: `Astoria Grand Hotel` does not name the
        `Grand Hotel`. Values with the same words are all named. Where several share the part that was
        said, those are meant of whose other words more were said too, here or before.

        Args:
            words: The turn's words, by `moss_voice.text.words`.
            before: The words said in the turns before, in any order.

        Returns:
            O(words of the turn): 0.15 ms for a spoken turn among 100,000 names.
        """
        spelled = spell(words)
        turn = _Turn(words, spelled, silences(words, spelled), before)
        claims = list(self._claims(turn, {}))
        right, close = self._put_right(turn)
        if close:
            claims += self._claims(turn._replace(spelled=right), close)
        taken = [False] * len(words)
        found: dict[int, Named] = {}
        for claim in sorted(claims, key=lambda claim: claim.order):
            start, stop, _ = claim.run
            if not any(taken[start:stop]):
                taken[start:stop] = [True] * (stop - start)
                for id_, certainty in claim.named:
                    if id_ not in found or found[id_].certainty < certainty:
                        found[id_] = Named(self._values[id_], certainty, claim.how)
        return list(found.values())

    def _claims(self, turn: _Turn, close: Mapping[int, float]) -> Iterator[_Claim]:
        """Yield what the runs of a turn's words name; where some were put right, the runs with those."""
        runs = spans(turn.spelled, turn.silent, most=_NAME_WORDS, letters=self._letters)
        if close:
            runs = [run for run in runs if any(run[0] <= at < run[1] for at in close)]
        hashes = np.array([hash(spelling) for _, _, spelling in runs], np.int64)
        whole = self._wholes.find(hashes, most=len(self))
        part = self._parts.find(hashes, most=_SHARED)
        is_whole = {at for at, _ in whole}
        for at, ids in (*whole, *(hit for hit in part if hit[0] not in is_whole)):
            run = _Run(*runs[at])
            trust = _trust(turn, run, close) if close else 1.0
            if not trust:
                continue
            named = self._whole(turn, run, ids) if at in is_whole else self._part(turn, run, ids)
            if named:
                how: How = "close" if close else "exact" if at in is_whole else "partial"
                yield _Claim(run, [(id_, trust * certainty) for id_, certainty in named], how)

    def _whole(self, turn: _Turn, run: _Run, ids: Sequence[int]) -> Sequence[tuple[int, float]]:
        """Return the values that a whole name names: of those spelled alike, the ones said word for word."""
        certainty = 1.0
        if run.stop - run.start == 1 and self._is_ordinary(run.spelling):
            certainty = _guarded(turn.words[: run.start])
        if len(ids) > 1:
            said = [*turn.words[run.start : run.stop]]
            ids = [id_ for id_ in ids if words_of(self._values[id_]) == said] or ids
        return [(id_, certainty) for id_ in ids] if certainty else ()

    def _part(self, turn: _Turn, run: _Run, ids: Sequence[int]) -> Sequence[tuple[int, float]]:
        """Return the values that a part can hardly but mean."""
        if not _may_be_part(turn, run):
            return ()
        meant = [(id_, cover) for id_ in ids if (cover := self._cover(turn, run, id_))]
        if len(ids) == 1 or not meant:
            return meant
        others = {*turn.spelled, *spell([*turn.before])}
        others.difference_update(turn.spelled[run.start : run.stop])
        said = {id_: len(others.intersection(self._tokens(id_))) for id_ in ids}
        likely = {id_ for id_ in ids if said[id_] == max(said.values())}
        # Branches share all but what tells them apart; what others share is a place or a kind.
        least = _PARTIAL if len(likely) > 1 else 0.0
        return [(id_, c / len(likely)) for id_, c in meant if id_ in likely and c >= least]

    def _cover(self, turn: _Turn, run: _Run, id_: int) -> float:
        """Return how certain a part makes its name, 0 where it is too little of it or too ordinary."""
        tokens, core = _spelling(self._values[id_])
        start, stop = _position(tokens, run.spelling)
        part, rest = tokens[start:stop], (*tokens[:start], *tokens[stop:core])
        own, missing = self._weight(part), self._weight(rest)
        if own >= 1:
            return _PARTIAL * own / (own + missing) if own > _COVER * (own + missing) else 0.0
        if self._generic.issuperset(rest) and not self._generic.issuperset(part):
            if len(part) > 1 and run.stop - run.start > 1:
                return _BUT_FOR_KIND
            if run.spelling in PEOPLE and run.start and turn.words[run.start - 1] == "the":
                return _PERSONAL
        return 0.0

    def _weight(self, tokens: Sequence[str]) -> float:
        return sum(_ORDINARY_WEIGHT if self._is_ordinary(token) else 1.0 for token in tokens)

    def _tokens(self, id_: int) -> tuple[str, ...]:
        return _spelling(self._values[id_]).tokens

    def _is_ordinary(self, token: str) -> bool:
        return token in ORDINARY or self._common(token)

    def _put_right(self, turn: _Turn) -> tuple[list[str], dict[int, float]]:
        """Return the turn's spelling with unknown words put right, and how close each of those is."""
        places = list(self._odd_places(turn))
        near = self._lexicon.near(["".join(turn.spelled[slice(*place)]) for place in places])
        spelled = list(turn.spelled)
        close: dict[int, float] = {}
        for (start, stop), known in zip(places, near, strict=True):
            if known and start not in close and (len(known) == 1 or known[0][0] > known[1][0]):
                closeness, word = known[0]
                spelled[start:stop] = [word, *[""] * (stop - start - 1)]
                close.update(dict.fromkeys(range(start, stop), closeness))
        return spelled, close

    def _odd_places(self, turn: _Turn) -> Iterator[tuple[int, int]]:
        """Yield the words that no name has and that are not ordinary, each alone and with its next."""
        odd = [
            token.isalpha() and token not in self._known and not self._is_ordinary(token)
            for token in turn.spelled
        ]
        for at, token in enumerate(turn.spelled):
            if odd[at] and len(token) >= SHORTEST:
                yield at, at + 1
            if any(odd[at : at + 2]) and not any(turn.silent[at : at + 2]):
                pair = "".join(turn.spelled[at : at + 2])
                if at + 1 < len(odd) and len(pair) >= _JOINED_LETTERS and pair.isalpha():
                    yield at, at + 2


def _guarded(words: Sequence[str]) -> float:
    """Return how certain a name of one ordinary word is after the words before it: "Ask", "The Bird"."""
    article = bool(words) and words[-1] in _ARTICLES
    if words and (words[-1] in _CALLED or (article and len(words) > 1 and words[-2] in _CALLED)):
        return 1.0
    return _GUARDED if words and words[-1] == "the" else 0.0


def _may_be_part(turn: _Turn, run: _Run) -> bool:
    """Tell whether a run can be said for a name: not an address, a sequence of letters or a hesitation."""
    words = turn.words
    return (
        len(run.spelling) >= max(_PART_LETTERS, run.stop - run.start + 1)
        and words[run.start] not in SILENT
        and words[run.stop - 1] not in SILENT
        and not _WHERE.intersection(words[max(run.start - 1, 0) : run.start])
        and not _PLACES.intersection(turn.spelled[run.stop : run.stop + 1])
    )


def _trust(turn: _Turn, run: _Run, close: Mapping[int, float]) -> float:
    """Return how far a run with words put right is to be believed, 0 for not at all."""
    said = [at for at in range(run.start, run.stop) if turn.spelled[at]]
    least = min(close[at] for at in range(run.start, run.stop) if at in close)
    needed = 0.0
    if len(said) == 1:
        needed = _CLOSE_ALONE if run.stop - run.start == 1 else _CLOSE_JOINED
    return _CLOSE * least if least >= needed and len(run.spelling) >= _CLOSE_LETTERS else 0.0


def _position(tokens: Sequence[str], spelling: str) -> tuple[int, int]:
    """Return where among a name's words a part of it is."""
    return next(
        (start, stop)
        for start in range(len(tokens))
        for stop in range(start + 1, min(start + _PART_WORDS, len(tokens)) + 1)
        if "".join(tokens[start:stop]) == spelling
    )


@lru_cache(1 << 10)
def _spelling(value: str) -> _Spelling:
    tokens = _spell_name(value)
    head = _spell_name(_BRANCH.split(value, maxsplit=1)[0])
    is_head = len(head) > 0 and tokens[: len(head)] == head
    return _Spelling(tokens, len(head) if is_head else len(tokens))


def _spell_name(value: str) -> tuple[str, ...]:
    """Return the words of a name in their one spelling: no article first, no joints inside."""
    words = words_of(value)
    while len(words) > 1 and words[0] in _ARTICLES and words[1] != "and" and len(words[1]) > 1:
        del words[0]
    spelled = spell(words)
    silent = silences(words, spelled)
    return tuple(
        token
        for at, token in enumerate(spelled)
        if token and (at in (0, len(words) - 1) or not silent[at])
    )
