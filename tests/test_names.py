"""Names in speech: whole names exactly, distinctive parts and misspellings with care, chatter never."""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import lru_cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moss_voice.call.fields import name_fields
from moss_voice.call.names import Named, Names
from moss_voice.call.sounds import Lexicon, closeness, sound
from moss_voice.call.spelling import spell
from moss_voice.text import words
from moss_voice.types import DocumentInfo, Metadata

PLACES = [
    "A AND B GUEST HOUSE",
    "ACORN GUEST HOUSE",
    "ALEXANDER BED AND BREAKFAST",
    "ASK RESTAURANT",
    "AUTUMN HOUSE",
    "Asian Box",
    "Bay Bike Rentals - Fisherman's Wharf",
    "Bite",
    "CAFFE UNO",
    "China Beach",
    "City Lights 432",
    "CURRY GARDEN",
    "DragonEats - SoMa",
    "DragonEats - The Haight",
    "FINCHES BED AND BREAKFAST",
    "GONVILLE HOTEL",
    "Grant Hotel",
    "HOBSONS HOUSE",
    "Hotel Beresford",
    "Hyatt Union Square",
    "INDIA HOUSE",
    "Ina Coolbrith Park",
    "Inn on Broadway",
    "KOHINOOR",
    "La Mediterranee - Pacific Heights",
    "Leopold's",
    "Love Birds Cafe",
    "Mahal of Cambridge",
    "Museum Of 3D Illusions",
    "Nineteen 06 Mission",
    "Nob Hill Cafe",
    "Nob Hill Inn",
    "Nob Hill Motor Inn",
    "Oakland Museum of California",
    "Pier 39",
    "Plaj Scandinavian Restaurant & Bar",
    "RICE HOUSE",
    "ROSA'S BED AND BREAKFAST",
    "SF Citadel",
    "Super Duper Burgers - Castro",
    "Super Duper Burgers - Union Square",
    "THE CAMBRIDGE BELFRY",
    "THE GOOD LUCK CHINESE FOOD TAKEAWAY",
    "THE LENSFIELD HOTEL",
    "THE LUCKY STAR",
    "The 16th Avenue Tiled Steps",
    "The Bird",
    "The Fairmont Heritage Place Ghirardelli Square",
    "The Progress",
    "UNIVERSITY ARMS HOTEL",
    "Um Ma Son",
    "Union Square",
    "WO8BTX",
]


@pytest.fixture(scope="module")
def names() -> Names[None]:
    return Names(dict.fromkeys(PLACES), common={"cambridge"}.__contains__)


def values(found: list[Named]) -> list[str]:
    return [named.value for named in found]


# --- whole names -------------------------------------------------------------------------------------

vocabulary = st.sampled_from(["ashby", "bexley", "corvo", "delphi", "elmore"])
names_drawn = st.lists(st.lists(vocabulary, min_size=2, max_size=4).map(" ".join), max_size=12)


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
@example(["ashby bexley", "bexley ashby corvo"], ["ashby", "bexley", "ashby", "corvo"])
@given(names_drawn, st.lists(vocabulary, max_size=12))
def test_whole_names_are_those_of_the_naive_search(drawn: list[str], turn: list[str]) -> None:
    """Where no part is distinctive, the look-up finds what trying every span finds, in the same order."""
    drawn = list(dict.fromkeys(drawn))
    found = Names(dict.fromkeys(drawn), common=lambda _: True).find(turn)
    assert values(found) == naive(drawn, turn)
    assert all((named.certainty, named.how) == (1.0, "exact") for named in found)


@settings(deadline=None)
@given(names_drawn, st.lists(vocabulary, max_size=12))
def test_each_value_is_named_once_with_a_certainty(drawn: list[str], turn: list[str]) -> None:
    """Whatever is found, each value comes once, its certainty is in (0, 1], and 1 only for whole names."""
    found = Names(dict.fromkeys(drawn)).find(turn)
    assert len(set(values(found))) == len(found)
    assert all(0 < named.certainty <= 1 for named in found)
    assert all(named.how == "exact" for named in found if named.certainty == 1)
    assert Names(dict.fromkeys(drawn)).find(tuple(turn)) == found


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (
            "is there a table at la mediterranee pacific heights",
            "La Mediterranee - Pacific Heights",
        ),
        ("the a and b guest-house please", "A AND B GUEST HOUSE"),
        ("is the a b guest house open", "A AND B GUEST HOUSE"),
        ("the acorn guesthouse", "ACORN GUEST HOUSE"),
        ("leopolds is it open", "Leopold's"),
        ("i mean leopold", "Leopold's"),
        ("ina cool brith park", "Ina Coolbrith Park"),
        ("at the lovebirds cafe", "Love Birds Cafe"),
        ("in a dragon eats so ma", "DragonEats - SoMa"),
        ("it's the s. f. citadel", "SF Citadel"),
        ("mahal cambridge", "Mahal of Cambridge"),
        ("fairmont heritage place in ghirardelli square", PLACES[47]),
        ("the ina uh coolbrith park", "Ina Coolbrith Park"),
        ("museum of three d. illusion", "Museum Of 3D Illusions"),
        ("it is nineteen zero six mission", "Nineteen 06 Mission"),
        ("nineteen oh six mission", "Nineteen 06 Mission"),
        ("city lights four thirty two", "City Lights 432"),
        ("city lights four hundred thirty two", "City Lights 432"),
        ("pier thirty nine", "Pier 39"),
        ("the sixteenth avenue tiled steps", "The 16th Avenue Tiled Steps"),
        ("the code is w o eight b t x", "WO8BTX"),
        ("w o eight b as in boy t for tom x", "WO8BTX"),
        ("p l a j scandinavian restaurant and bar", "Plaj Scandinavian Restaurant & Bar"),
        ("g o double l um", ""),
        ("a place called bite", "Bite"),
        ("there's the um ma son", "Um Ma Son"),
    ],
)
def test_whole_names_are_found_however_they_are_written(
    names: Names[None], said: str, value: str
) -> None:
    """Case, joints, plurals, articles, digits, hesitations and spelled letters make no difference."""
    assert names.find(words(said)) == ([Named(value, 1.0, "exact")] if value else [])


def test_one_ordinary_word_is_a_name_only_with_a_cue(names: Names[None]) -> None:
    """A bird names "The Bird" after its article, half certain; without it, or as "bite", nothing."""
    assert names.find(words("can i go to the progress")) == [Named("The Progress", 0.5, "exact")]
    assert names.find(words("it is called the progress")) == [Named("The Progress", 1.0, "exact")]
    assert names.find(words("the transfer is in progress can i grab a bite")) == []


def test_the_longest_name_takes_its_words() -> None:
    """A name within a longer one that was said is not named by it, but is when said on its own."""
    names = Names({"Cambridge": 1, "Cambridge Arms": 2, "CAMBRIDGE ARMS": 3, "The Arms": 4})
    both = ["Cambridge Arms", "CAMBRIDGE ARMS"]
    assert values(names.find(words("the cambridge arms"))) == both
    assert values(names.find(words("cambridge has the cambridge arms"))) == [*both, "Cambridge"]


def test_of_values_spelled_alike_the_one_said_word_for_word_is_meant() -> None:
    """Plurals and joints are one in speech, but each value is itself when written so."""
    names = Names({"Zaza Birds": 1, "Zaza Bird": 2, "Zazabird": 3})
    assert values(names.find(["zaza", "bird"])) == ["Zaza Bird"]
    assert values(names.find(["zazabirds"])) == ["Zaza Birds", "Zaza Bird", "Zazabird"]


def test_names_hold_what_they_were_given() -> None:
    """Rows come back by value; values without a word are kept and never found."""
    names = Names({"A & B Guest House": [1, 4], "!!!": [5]})
    assert names.rows("A & B Guest House") == [1, 4]
    with pytest.raises(KeyError):
        names.rows("a b guest house")
    assert (len(names), repr(names)) == (2, "<Names 2 values>")
    assert names.find([]) == names.find(["!!!"]) == Names({}).find(["zaza"]) == []


# --- parts, misspellings, sounds ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("is acorn any good", "ACORN GUEST HOUSE"),
        ("how about the belfry", "THE CAMBRIDGE BELFRY"),
        ("the cambridge belfry hotel", "THE CAMBRIDGE BELFRY"),
        ("the lensfield then", "THE LENSFIELD HOTEL"),
        ("it is called la mediterranee", "La Mediterranee - Pacific Heights"),
        ("how about super duper burgers on union square", "Super Duper Burgers - Union Square"),
        ("the university arms is expensive", "UNIVERSITY ARMS HOTEL"),
        ("i booked the alexander for one night", "ALEXANDER BED AND BREAKFAST"),
        ("the gonville is cheap", "GONVILLE HOTEL"),
        ("call plaj for me", "Plaj Scandinavian Restaurant & Bar"),
        ("is hotel beresford by union square", "Hotel Beresford"),
    ],
)
def test_a_distinctive_part_names_its_value(names: Names[None], said: str, value: str) -> None:
    """What is left of a name without its kind, branch or common words is enough, but less certain."""
    found = names.find(words(said))
    assert found[0].value == value
    assert found[0].how == "partial" or found[0].certainty == 1
    assert set(values(found)) <= {value, "Union Square"}


def test_a_part_that_several_share_names_each_less(names: Names[None]) -> None:
    """Certainty is divided; the words said before tell the branches apart; a district names no inn."""
    shared = names.find(words("we have dragon eats"))
    assert values(shared) == ["DragonEats - SoMa", "DragonEats - The Haight"]
    assert {named.certainty for named in shared} == {0.45}
    before = words("something cheap in soma")
    assert names.find(words("we have dragon eats"), before=before) == [
        Named("DragonEats - SoMa", 0.9, "partial")
    ]
    assert names.find(words("somewhere on nob hill")) == []


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("plaj scandanavian restaurant and bar", "Plaj Scandinavian Restaurant & Bar"),
        ("the cambrdige belfry", "THE CAMBRIDGE BELFRY"),
        ("flinches bed and breakfast", "FINCHES BED AND BREAKFAST"),
        ("accorn guesthouse", "ACORN GUEST HOUSE"),
        ("the gonville hotal", "GONVILLE HOTEL"),
        ("ina cool brath park", "Ina Coolbrith Park"),
        ("ina koolbrith park", "Ina Coolbrith Park"),
        ("kohinour is that open", "KOHINOOR"),
        ("the lenzfield hotel", "THE LENSFIELD HOTEL"),
        ("lea polds on sunday", "Leopold's"),
    ],
)
def test_what_nearly_says_a_name_names_it(names: Names[None], said: str, value: str) -> None:
    """One letter wrong, a word that sounds the same, and both across a split word are put right."""
    found = names.find(words(said))
    assert values(found) == [value]
    assert found[0].certainty < 1


@pytest.mark.parametrize(
    "said",
    [
        "",
        "yeah that sounds good thank you",
        "i would like a good hotel with a park near the house",
        "good luck with that",
        "it has three stars and i am lucky",
        "how long does a transfer to china take",
        "do they have rice or curry",
        "my name is rosa my friend is alexander",
        "this is grant speaking",
        "the address is four six five grant avenue at union street",
        "flights from oakland on monday",
        "something in nob hill in a moderate price range",
        "the restaurant is near the beach by the university",
        "can i ask you to book a guest house",
        "umm a son of mine wants a bird",
        "could you spell that a b a s k",
        "we had breakfast in bed and then took the inn",
        "i wanna click that button",
        "the transaction still seems in progress",
        "it is four one five eight two four seventy eight",
        "we would like an asian restaurant and a box",
        "is it in the centre or in the west of the city",
    ],
)
def test_ordinary_speech_names_nothing(names: Names[None], said: str) -> None:
    """Common words, persons, streets, districts and spelled letters are not taken for parts of names."""
    assert names.find(words(said)) == []


def test_common_words_of_an_index_name_nothing() -> None:
    """A word that the caller knows from many passages does not stand for the one value that has it."""
    groups = {"Terazzo House": 1, "Haus Quelle": 2}
    assert values(Names(groups).find(["terazzo"])) == ["Terazzo House"]
    assert Names(groups, common={"terazzo"}.__contains__).find(["terazzo"]) == []


def test_cost_does_not_grow_with_the_names() -> None:
    """A turn asks after its own words only, whether there are thirty names or three thousand."""

    def asked(count: int) -> int:
        words_asked: list[str] = []

        def common(word: str) -> bool:
            words_asked.append(word)
            return False

        names = Names({f"quorl{n} vexim{n} hotel": n for n in range(count)}, common=common)
        found = names.find(words("i'd like the quorl12 vexim12 hotel or the quorl7 vexlm thing"))
        assert "quorl12 vexim12 hotel" in values(found)
        return len(words_asked)

    assert asked(3000) == asked(30) < 30


# --- spelling and sounds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "spelled"),
    [
        ("leopold's burgers class bus", "leopold burger class bus"),
        ("four thirty two", "4 3 2"),
        ("thirty", "30"),
        ("twenty first", "2 1st"),
        ("three hundred rooms", "3 00 room"),
        ("b as in boy", "b   "),
        ("d for delta", "d  "),
        ("d for four", "d for 4"),
        ("double l", " ll"),
        ("double room", "double room"),
        ("", ""),
    ],
)
def test_spelling(said: str, spelled: str) -> None:
    """One spelling for plurals, numbers and letters; a word that another took up is blank."""
    assert " ".join(spell(words(said))) == spelled


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("scandinavian", "scandanavian"),
        ("coolbrith", "koolbrath"),
        ("phoenix", "fenix"),
        ("leopolds", "leapols"),
        ("wright", "rite"),
        ("knight", "nite"),
        ("ciao", "chow"),
        ("quay", "kay"),
        ("bennies", "bennys"),
    ],
)
def test_what_sounds_alike_has_one_sound(one: str, other: str) -> None:
    """The consonants heard are the same however a recogniser writes them."""
    assert sound(one) == sound(other) != ""


@lru_cache(None)
def edits(one: str, other: str) -> int:
    """The definition: one letter left out, put in, changed, or two neighbours exchanged."""
    if not one or not other:
        return len(one) + len(other)
    costs = [
        edits(one[1:], other) + 1,
        edits(one, other[1:]) + 1,
        edits(one[1:], other[1:]) + (one[0] != other[0]),
    ]
    if len(one) > 1 < len(other) and one[:2] == other[1::-1]:
        costs.append(edits(one[2:], other[2:]) + 1)
    return min(costs)


@settings(deadline=None)
@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_closeness_is_by_the_definition_of_edits(one: str, other: str) -> None:
    """The table computes what the recursive definition says."""
    expected = 1 - edits(one, other) / max(len(one), len(other), 1)
    assert closeness(one, other) == pytest.approx(expected)


@settings(deadline=None)
@given(st.text(string.ascii_lowercase, min_size=5, max_size=10), st.data())
def test_a_lexicon_finds_each_word_with_one_letter_wrong(word: str, data: st.DataObject) -> None:
    """Any single edit of a word leads back to it."""
    at = data.draw(st.integers(0, len(word) - 1))
    letter = data.draw(st.sampled_from(string.ascii_lowercase))
    wrong = data.draw(
        st.sampled_from(
            [
                word[:at] + word[at + 1 :],
                word[:at] + letter + word[at + 1 :],
                word[:at] + letter + word[at:],
                word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            ]
        )
    )
    near = Lexicon([word, "unrelated"], [word]).near([wrong, "zzzzz"])
    assert word in [known for _, known in near[0]]
    assert Lexicon([], []).near([wrong]) == [[]]


# --- which fields hold names -------------------------------------------------------------------------


@dataclass
class Doc:
    text: str
    metadata: Metadata | None


SURNAMES = [
    "Abernathy",
    "Boskovic",
    "Castellano",
    "Drummond",
    "Eichhorn",
    "Fitzwilliam",
    "Gallowglass",
    "Hargreave",
]


def business(n: int, title: str, of_all: str) -> Doc:
    name = f"{SURNAMES[n % 8]} {('Hotel', 'Bistro', 'Cafe')[n % 8 % 3]}"
    return Doc(
        f"{title} {of_all} {name} is glad to help.",
        {
            "entity": name,
            "entity_key": f"hotel__{n % 24}",
            "domain": ("hotel", "restaurant")[n % 2],
            "title": title,
            "source": f"faq/{SURNAMES[n % 8].lower()}.md",
            "language": "en",
            "stars": n % 5,
            "speaker": f"Agent {SURNAMES[-n % 8]}",
            "url": f"https://example.com/{name}",
        },
    )


def test_names_are_found_among_the_fields() -> None:
    """Of the fields of an FAQ only the one with the businesses' names holds names."""
    docs = [
        business(n, title, "Our guests often ask.")
        for n in range(48)
        for title in ("Is there parking?", "Do you have a pool on the roof for families?")
    ]
    assert name_fields(docs) == ["entity"]
    assert name_fields(iter(docs * 60)) == ["entity"]
    as_documents = [DocumentInfo(str(n), doc.text, doc.metadata) for n, doc in enumerate(docs)]
    assert name_fields(as_documents) == ["entity"]


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"label": "card_payment_wrong_exchange_rate", "title": "Card payment wrong exchange rate"},
        {"product": "Quorlvex"},
        {"count": 3, "open": True},
        {"blank": " "},
    ],
)
def test_labels_and_few_values_are_no_names(metadata: Metadata | None) -> None:
    """Intent labels, one value for all and values that are no text give no field."""
    assert name_fields([Doc("The Quorlvex card payment is wrong.", metadata)] * 30) == []


def test_one_document_per_product_will_do() -> None:
    """Names need not repeat, nor fill every document; the most convincing field comes first."""
    kinds = [a + b for a in ("Zor", "Vex") for b in ("lin", "tap", "mur")]
    products = [f"{kind} {number}" for number in (200, 300) for kind in kinds]
    docs = [
        Doc(
            f"The {product} by {maker} has a lid." if n % 3 else f"The {product} has a lid.",
            {"product": product, "maker": maker},
        )
        for n, product in enumerate(products)
        for maker in [f"{product[2::-1]}ograd Works"]
    ]
    extra: list[Doc] = [Doc("Shipping is free.", None), Doc("Call us.", {"product": "Zorlin 200"})]
    assert name_fields([*docs, *extra])[0] == "product"
    assert name_fields([]) == []
