"""Call scripts say who spoke which words and when, and label the pace that is made up."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.calls import GAP_S, WORDS_PER_S, CallScript, ScriptTurn, interims, read_calls
from moss_voice.errors import InvalidArgumentError

SECRET = "Zanzibar"


def turn(i: int, speaker: str = "user", text: str = "one two three", **more: Any) -> dict[str, Any]:
    return {"i": i, "speaker": speaker, "text": text, **more}


def read(tmp_path: Path, *rows: dict[str, Any] | str | bytes) -> list[CallScript]:
    lines = [
        row
        if isinstance(row, bytes)
        else (row if isinstance(row, str) else json.dumps(row)).encode()
        for row in rows
    ]
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"\n".join(lines))
    return list(read_calls(path))


def test_a_call_without_timing_is_paced_and_labelled(tmp_path: Path) -> None:
    """2.7 words a second, half a second between turns, and actions take no time."""
    rows = [turn(0, "agent"), turn(1, "action"), turn(2), turn(3, "assistant", "a" * 9)]
    (call,) = read(tmp_path, {"id": "c", "turns": rows})
    assert call.timing == "synthetic"
    spoken_s = 3 / 2.7
    expected = [
        (0, "agent", 0, spoken_s),
        (1, "action", spoken_s, spoken_s),
        (2, "caller", spoken_s + 0.5, 2 * spoken_s + 0.5),
        (3, "agent", 2 * spoken_s + 1, 2 * spoken_s + 1 + 1 / 2.7),
    ]
    for got, (number, speaker, start_s, end_s) in zip(call.turns, expected, strict=True):
        assert (got.number, got.speaker) == (number, speaker)
        assert got.start_s == pytest.approx(start_s)
        assert got.end_s == pytest.approx(end_s)
    assert [got.number for got in call.spoken] == [0, 2, 3]


def test_recorded_timing_is_kept(tmp_path: Path) -> None:
    """Times of the file are seconds here, overlaps included; an action stands where it happened."""
    rows = [
        turn(0, start_ms=3809, duration_ms=2820),
        turn(1, "agent", start_ms=5000, duration_ms=100),
        turn(2, "action"),
        turn(3, "action", start_ms=9000),
    ]
    (call,) = read(tmp_path, {"id": "c", "turns": rows})
    assert call.timing == "recorded"
    assert [(got.start_s, got.end_s) for got in call.turns] == [
        (3.809, pytest.approx(6.629)),
        (5.0, 5.1),
        (5.1, 5.1),
        (9.0, 9.0),
    ]


def test_partly_timed_calls_are_paced_as_a_whole(tmp_path: Path) -> None:
    """Recorded and made-up times are never mixed."""
    rows = [turn(0, start_ms=60_000, duration_ms=10), turn(1), turn(2, start_ms=0)]
    (call,) = read(tmp_path, {"id": "c", "turns": rows})
    assert call.timing == "synthetic"
    assert call.turns[0].start_s == 0
    assert call.turns[2].end_s < 10


def test_made_up_times_of_a_file_stay_labelled(tmp_path: Path) -> None:
    """A file may carry times and say that they were never recorded."""
    rows = [turn(0, start_ms=700, duration_ms=10)]
    (call,) = read(tmp_path, {"id": "c", "timing": "synthetic", "turns": rows})
    assert (call.timing, call.turns[0].start_s) == ("synthetic", 0.7)


def test_optional_fields(tmp_path: Path) -> None:
    """What a turn knows beyond its words comes through; fields of others are left alone."""
    row = turn(4, "caller", interrupted=True, asr_nbest=["a", "b"], interims=["o", "on"], note="x")
    (call,) = read(
        tmp_path,
        {
            "id": "c",
            "source": "s",
            "kind": "k",
            "turns": [row],
            "knowledge_turns": [{"turn": 4, "gold": ["d1", "d2"]}],
        },
    )
    (got,) = call.turns
    assert (got.interrupted, got.nbest, got.partials) == (True, ("a", "b"), ("o", "on"))
    assert (call.source, call.knowledge) == ("s", ((4, ("d1", "d2")),))
    assert list(interims(got)) == ["o", "on"]


def test_calls_are_read_one_by_one(tmp_path: Path) -> None:
    """A call is handed over before the next line is looked at; blank lines and a mark are skipped."""
    good = json.dumps({"id": "c", "turns": [turn(0)]}).encode()
    path = tmp_path / "calls.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + b"broken")
    calls = read_calls(path)
    assert next(calls).id == "c"
    with pytest.raises(InvalidArgumentError, match=r"^calls.jsonl:3: the line: Invalid JSON"):
        next(calls)


C = '{"id": "c", "turns": [{"i": 0, "speaker": "user", "text": "Zanzibar"'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (C, "the line: Invalid JSON"),
        (C.replace("Zan", "Zan\\ud800") + "}]}", "the line: Invalid JSON"),
        ("[" * 100_000, "the line: Invalid JSON"),
        (b"\xff" + C.encode(), "the line: Invalid JSON"),
        (C.encode().replace(b"Zan", b"Zan\xff") + b"}]}", "the line: Invalid JSON"),
        (f'["{SECRET}"]', "the line: "),
        ('{"id": "c"}', "turns: Field required"),
        ('{"id": "c", "turns": []}', "turns: "),
        ('{"id": "", "turns": []}', "id: "),
        ('{"turns": [{"i": 0, "speaker": "user", "text": "Zanzibar"}]}', "id: Field required"),
        (f'{{"id": 3, "turns": ["{SECRET}"]}}', "id: "),
        (C.replace('"text"', '"words"') + "}]}", r"turns\[0\].text: Field required"),
        (C.replace('"user"', '"Zanzibar"') + "}]}", r"turns\[0\].speaker: Input should be"),
        (C.replace('"i": 0', '"i": "Zanzibar"') + "}]}", r"turns\[0\].i: "),
        (C + ', "start_ms": -1}]}', r"turns\[0\].start_ms: "),
        (C + ', "start_ms": NaN}]}', "(the line|turns.0..start_ms): "),
        (C + ', "duration_ms": "9"}]}', r"turns\[0\].duration_ms: "),
        (C + ', "asr_nbest": "Zanzibar"}]}', r"turns\[0\].asr_nbest: "),
        (C + ', "interims": [1]}]}', r"turns\[0\].interims\[0\]: "),
        (C + ', "interrupted": "yes"}]}', r"turns\[0\].interrupted: "),
        (C + '}, {"i": 0, "speaker": "user", "text": "b"}]}', "turns: two turns have the same"),
        (
            C + '}], "knowledge_turns": [{"turn": 7, "gold": []}]}',
            "knowledge_turns: the call has no turn numbered 7",
        ),
        (json.dumps({"id": "first", "turns": [turn(0)]}), "id: 'first' is already taken"),
    ],
)
def test_errors_name_the_line_and_field_and_quote_nothing(
    tmp_path: Path, line: str | bytes, expected: str
) -> None:
    """A malformed line is found by file, line and field alone."""
    with pytest.raises(InvalidArgumentError, match=rf"^calls.jsonl:2: {expected}") as caught:
        read(tmp_path, {"id": "first", "turns": [turn(0)]}, line)
    assert SECRET not in str(caught.value)


def test_files_without_calls(tmp_path: Path) -> None:
    """A missing and an empty file are errors, not calls of no turns."""
    with pytest.raises(InvalidArgumentError, match=r"no\.jsonl: cannot be read"):
        list(read_calls(tmp_path / "no.jsonl"))
    with pytest.raises(InvalidArgumentError, match=r"calls\.jsonl: holds no calls"):
        read(tmp_path, "", " ")


def script_turn(text: str, **more: Any) -> ScriptTurn:
    return ScriptTurn(0, more.pop("speaker", "caller"), text, 0.0, 1.0, **more)


@settings(deadline=None)
@given(st.text())
def test_interims_grow_word_by_word(text: str) -> None:
    """Each partial adds a word to the one before, and the last holds all of them."""
    partials = list(interims(script_turn(text)))
    assert len(partials) == len(text.split())
    assert all(after.startswith(before + " ") for before, after in pairwise(partials))
    if partials:
        assert partials[-1].split() == text.split()


def test_nobody_speaks_an_action() -> None:
    """An event of the system is never heard, whole or in part."""
    assert list(interims(script_turn("a b", speaker="action", partials=("a",)))) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["user", "agent", "action"]), st.text(max_size=20))))
def test_paced_turns_never_overlap(
    tmp_path_factory: pytest.TempPathFactory, spoken: list[tuple[str, str]]
) -> None:
    """Made-up times go forward at the stated pace."""
    rows = [turn(i, speaker, text) for i, (speaker, text) in enumerate([("user", "a b"), *spoken])]
    (call,) = read(tmp_path_factory.mktemp("calls"), {"id": "c", "turns": rows})
    for before, after in pairwise(call.spoken):
        assert after.start_s == pytest.approx(before.end_s + GAP_S)
    for got in call.spoken:
        assert (got.end_s - got.start_s) * WORDS_PER_S == pytest.approx(len(got.text.split()))
