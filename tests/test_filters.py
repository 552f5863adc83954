"""Metadata filters: the language, its errors, and that masks agree with single answers."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.errors import FilterError
from moss_voice.filters import Columns, Filter, _Condition, parse_filter


def parsed(raw: Mapping[str, Any]) -> Filter:
    result = parse_filter(raw)
    assert result is not None
    return result


def passes(condition: Mapping[str, Any], value: object) -> bool:
    """Ask `matches`, and `mask` too: they must agree."""
    condition_filter = parsed({"field": "f", "condition": condition})
    verdict = condition_filter.matches({"f": value})
    mask = condition_filter.mask(Columns(lambda _row: {"f": value}), 1)
    assert mask.tolist() == [verdict]
    return verdict


BIG = 2**53


@pytest.mark.parametrize(
    ("condition", "passing", "failing"),
    [
        ({"$eq": "a"}, ["a"], ["A", "", 1, True, None, ["a"]]),
        ({"$eq": 5}, [5, 5.0, "5", "5.0", " 5 ", "5e0", "+5"], [6, "5a", True, "five", "\uff15"]),
        ({"$eq": "5"}, ["5", 5, 5.0], ["5.0", "05", 6]),
        ({"$eq": "007"}, ["007", 7], ["7"]),
        ({"$eq": 0}, [0, -0.0, "0", "-0"], [False, "", None]),
        ({"$eq": True}, [True], [1, 1.0, "true", "True", False]),
        ({"$eq": 1}, [1, "1"], [True]),
        ({"$eq": BIG + 1}, [BIG + 1, str(BIG + 1)], [BIG, float(BIG)]),
        ({"$ne": 5}, [6, "a", "", True], [5, "5", 5.0, None]),
        ({"$gt": 5}, [6, 5.1, "6", "5.1", "1e3"], [5, "5", "a", "", True, None, math.nan]),
        ({"$gt": "5"}, [6, "6", "10"], [5, "5", "4"]),
        ({"$gte": 5}, [5, "5", 6], [4.9, "4"]),
        ({"$lt": 5}, [4, "-1", ".5"], [5, False, "nan", "-inf", "1_0"]),
        ({"$lte": -1.5}, [-1.5, "-1.5", -2], [-1]),
        ({"$gt": BIG}, [BIG + 1, str(BIG + 1)], [BIG, float(BIG), BIG - 1]),
        ({"$lt": BIG + 1}, [BIG, float(BIG)], [BIG + 1, BIG + 2]),
        ({"$gte": 10, "$lt": 20}, [10, "19.9"], [20, 9, "x"]),
        ({"$gt": 0, "$ne": 3, "$in": [1, 2, 3]}, [1, "2"], [3, 0, 4]),
        ({"$in": ["a", 3, True]}, ["a", 3, "3", True], ["b", 1, "true", None]),
        ({"$in": []}, [], ["a", 1, None]),
        ({"$nin": ["a", 3]}, ["b", 4, True], ["a", 3, "3", None]),
        ({"$nin": []}, ["a", 1], [None]),
        (
            {"$near": "52.52, 13.405, 1000"},
            ["52.52,13.405", "52.525, 13.41"],
            ["52.54,13.405", "52.52", "52.52,13.405,1", "a,b", "152.52,13.405", 52.52, True, None],
        ),
        ({"$near": "0,179.999,500"}, ["0,-179.999", "0,180"], ["0,179.9"]),
        ({"$near": "90,0,1"}, ["90,120"], ["89.9,0"]),
        ({"$near": "10,10,0"}, ["10,10"], ["10,10.001"]),
    ],
)
def test_conditions(
    condition: Mapping[str, Any], passing: list[object], failing: list[object]
) -> None:
    """Each operator passes what the module's docstring says and nothing else."""
    for value in passing:
        assert passes(condition, value), value
    for value in failing:
        assert not passes(condition, value), value


@pytest.mark.parametrize(
    "condition", [{"$ne": 1}, {"$nin": [1]}, {"$nin": []}, {"$eq": 1}, {"$gt": 0}, {"$in": [1]}]
)
@pytest.mark.parametrize("metadata", [None, {}, {"other": 2}, {"f": None}])
def test_a_missing_field_never_matches(
    condition: Mapping[str, Any], metadata: Mapping[str, Any] | None
) -> None:
    """No condition passes without a value, `$ne` and `$nin` included; so its negation always does."""
    raw = {"field": "f", "condition": condition}
    assert not parsed(raw).matches(metadata)
    assert parsed({"$not": raw}).matches(metadata)


def test_near_measures_along_the_earth() -> None:
    """Berlin to Paris is 878 km by the great circle, to within its rounding."""
    paris = {"f": "48.8566,2.3522"}
    near = parsed({"field": "f", "condition": {"$near": "52.5200,13.4050,879000"}})
    far = parsed({"field": "f", "condition": {"$near": "52.5200,13.4050,876000"}})
    assert near.matches(paris)
    assert not far.matches(paris)


def test_filters_nest() -> None:
    """And, or and not combine, and tell which fields they read."""
    nested = parsed(
        {
            "$and": [
                {"field": "city", "condition": {"$in": ["NYC", "SF"]}},
                {
                    "$or": [
                        {"field": "price", "condition": {"$lt": "50"}},
                        {"$not": {"field": "paid", "condition": {"$eq": True}}},
                    ]
                },
            ]
        }
    )
    assert nested.fields == {"city", "price", "paid"}
    assert nested.matches({"city": "SF", "price": "49.5", "paid": True})
    assert nested.matches({"city": "SF", "price": 50})
    assert not nested.matches({"city": "SF", "price": 50, "paid": True})
    assert not nested.matches({"city": "LA", "price": 1})


def test_no_filter_is_none() -> None:
    """None means no filter; an empty mapping is an error, lest a lost filter let everything pass."""
    assert parse_filter(None) is None
    with pytest.raises(FilterError, match=r"^filter: "):
        parse_filter({})


EQ = {"field": "a", "condition": {"$eq": 1}}


def within(condition: Any) -> dict[str, Any]:
    """Put a condition where its path is `$and[1].condition`."""
    return {"$and": [EQ, {"field": "a", "condition": condition}]}


def deep(levels: int) -> dict[str, Any]:
    raw: dict[str, Any] = EQ
    for _ in range(levels):
        raw = {"$not": raw}
    return raw


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ([], "filter"),
        ("a", "filter"),
        ({"field": "a"}, "condition"),
        ({"condition": {"$eq": 1}}, "field"),
        ({"field": 1, "condition": {"$eq": 1}}, "field"),
        ({"field": "", "condition": {"$eq": 1}}, "field"),
        ({"field": "a", "condition": 1}, "condition"),
        ({"field": "a", "condition": {}}, "condition"),
        ({"field": "a", "condition": {"$eq": 1}, "extra": 1}, "extra"),
        ({"a": {"$eq": 1}}, "a"),
        ({1: 2}, "<int>"),
        ({"$and": []}, "$and"),
        ({"$or": []}, "$or"),
        ({"$and": EQ}, "$and"),
        ({"$or": "ab"}, "$or"),
        ({"$and": [EQ], "$or": [EQ]}, "$or"),
        ({"$and": [EQ], "field": "a"}, "field"),
        ({"$not": [EQ]}, "$not"),
        ({"$not": {"$or": [EQ, EQ, {"field": "a"}]}}, "$not.$or[2].condition"),
        ({"$and": [EQ, 3]}, "$and[1]"),
        ({"$and": [EQ, {}]}, "$and[1]"),
        (within({"$gt": "abc"}), "$and[1].condition.$gt"),
        (within({"$gt": True}), "$and[1].condition.$gt"),
        (within({"$gte": None}), "$and[1].condition.$gte"),
        (within({"$lt": [1]}), "$and[1].condition.$lt"),
        (within({"$lte": math.nan}), "$and[1].condition.$lte"),
        (within({"$gt": 1, "$lt": "x"}), "$and[1].condition.$lt"),
        (within({"$eq": None}), "$and[1].condition.$eq"),
        (within({"$eq": math.nan}), "$and[1].condition.$eq"),
        (within({"$eq": math.inf}), "$and[1].condition.$eq"),
        (within({"$eq": 10**400}), "$and[1].condition.$eq"),
        (within({"$ne": {"a": 1}}), "$and[1].condition.$ne"),
        (within({"$in": "ab"}), "$and[1].condition.$in"),
        (within({"$in": 3}), "$and[1].condition.$in"),
        (within({"$in": [1, None]}), "$and[1].condition.$in[1]"),
        (within({"$nin": [math.nan]}), "$and[1].condition.$nin[0]"),
        (within({"$regex": "a"}), "$and[1].condition.$regex"),
        (within({"eq": "a"}), "$and[1].condition.eq"),
        (within({3: "a"}), "$and[1].condition.<int>"),
        (within({"$near": 3}), "$and[1].condition.$near"),
        (within({"$near": [1, 2, 3]}), "$and[1].condition.$near"),
        (within({"$near": "1,2"}), "$and[1].condition.$near"),
        (within({"$near": "1,2,3,4"}), "$and[1].condition.$near"),
        (within({"$near": "a,2,3"}), "$and[1].condition.$near"),
        (within({"$near": "1,2,nan"}), "$and[1].condition.$near"),
        (within({"$near": "91,2,3"}), "$and[1].condition.$near"),
        (within({"$near": "1,181,3"}), "$and[1].condition.$near"),
        (within({"$near": "1,2,-3"}), "$and[1].condition.$near"),
        (within({"$near": "1,2,1e400"}), "$and[1].condition.$near"),
        (deep(5000), ".".join(["$not"] * 65)),
    ],
)
def test_a_malformed_filter_names_the_place(raw: Any, path: str) -> None:
    """Every fault is a ValueError whose message starts with its path."""
    with pytest.raises(FilterError, match=rf"^{re.escape(path)}: ") as caught:
        parse_filter(raw)
    assert isinstance(caught.value, ValueError)


def test_errors_do_not_quote_values() -> None:
    """What a filter compares with may be a caller's data: messages tell its type."""
    for condition in ({"$gt": "secret"}, {"$in": "secret"}, {"$near": "secret,1,2"}):
        with pytest.raises(FilterError) as caught:
            parse_filter({"field": "a", "condition": condition})
        assert "secret" not in str(caught.value)


# Values that nearly meet each other: as numbers, spelled numbers, booleans, points and large integers.
SCALARS = st.sampled_from(
    [
        *(0, 1, 2, 1.0, 1.5, -1, BIG, BIG + 1, BIG + 2, float(BIG), 10**300),
        *("0", "1", "1.0", "01", " 1", "1.5", str(BIG + 1), "a", "b", "", "true", "nan", "1e999"),
        *(True, False),
        *("1,1", "1, 1.001", "-1,179.9", "91,0", "1,a"),
    ]
)
NUMBERS = st.sampled_from([0, 1, 1.0, 1.5, "1", "1.5", BIG, BIG + 1, str(BIG + 1), -1, 10**300])
VALUES = SCALARS | st.sampled_from([None, math.nan, 10**400, [1], {"a": 1}])
METADATA = st.none() | st.dictionaries(st.sampled_from("fgh"), VALUES, max_size=3)
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("$eq", "$ne"), SCALARS),
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), NUMBERS),
        **dict.fromkeys(("$in", "$nin"), st.lists(SCALARS, max_size=3)),
        "$near": st.sampled_from(["1,1,0", "1,1,150", "0,-180,1e6", "0,0,3e7"]),
    },
).filter(bool)
FILTERS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.fixed_dictionaries({"field": st.sampled_from("fgh"), "condition": CONDITIONS}),
    lambda inner: (
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"$not": inner})
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(FILTERS, min_size=1, max_size=4), st.lists(METADATA, max_size=25), st.data())
def test_masks_agree_with_single_answers(
    raws: list[dict[str, Any]], rows: list[dict[str, Any] | None], data: st.DataObject
) -> None:
    """Whatever the filters, and however the rows grow between them, a mask is `matches` of each row."""
    columns = Columns(rows.__getitem__)
    for raw in raws:
        condition = parsed(raw)
        for n_rows in (data.draw(st.integers(0, len(rows))), len(rows)):
            mask = condition.mask(columns, n_rows)
            assert mask.dtype == np.bool_
            assert mask.tolist() == [condition.matches(metadata) for metadata in rows[:n_rows]]
            mask[:] = False  # the caller owns it


@settings(deadline=None)
@given(FILTERS, METADATA)
def test_not_is_plain_negation(raw: dict[str, Any], metadata: dict[str, Any] | None) -> None:
    """`$not` passes exactly what its operand does not; De Morgan holds."""
    condition = parsed(raw)
    assert parsed({"$not": raw}).matches(metadata) is not condition.matches(metadata)
    neither = parsed({"$not": {"$or": [raw, EQ]}})
    both = parsed({"$and": [{"$not": raw}, {"$not": EQ}]})
    assert neither.matches(metadata) == both.matches(metadata)


@settings(deadline=None)
@given(st.sampled_from("fgh"), SCALARS, SCALARS)
def test_equality_has_no_sides(field: str, one: Any, other: Any) -> None:
    """A value equals an operand just where the operand, stored, equals the value; `$ne` is its opposite."""
    eq = parsed({"field": field, "condition": {"$eq": one}})
    swapped = parsed({"field": field, "condition": {"$eq": other}})
    assert eq.matches({field: other}) == swapped.matches({field: one})
    ne = parsed({"field": field, "condition": {"$ne": one}})
    assert ne.matches({field: other}) is not eq.matches({field: other})


def test_a_column_given_out_earlier_still_answers() -> None:
    """A reader that holds a column while another extends it gets the rows it began with."""
    rows: list[dict[str, Any]] = [{"f": "a"}, {"f": "1"}, {"f": "b"}, {"f": 1}, {"f": 1.0}]
    columns = Columns(rows.__getitem__)
    condition = parsed({"field": "f", "condition": {"$in": ["a", "b", 1]}})
    columns.extend(["f"], 2)
    held = columns.column("f")
    columns.extend(["f"], 5)
    assert isinstance(condition, _Condition)
    assert condition.tests[0].mask(held).tolist() == [True, True]
    assert condition.mask(columns, 5).all()


def test_each_row_is_read_once() -> None:
    """A column asks for a row's metadata once, however often filters ask and rows are added."""
    asked: list[int] = []

    def metadata_of(row: int) -> dict[str, int]:
        asked.append(row)
        return {"f": row, "g": row % 3}

    columns = Columns(metadata_of)
    condition = parsed(
        {
            "$and": [
                {"field": "f", "condition": {"$gte": 2}},
                {"field": "g", "condition": {"$ne": 1}},
            ]
        }
    )
    for n_rows in (5, 5, 3, 0, 200, 200):
        expected = [row >= 2 and row % 3 != 1 for row in range(n_rows)]
        assert condition.mask(columns, n_rows).tolist() == expected
    assert asked == list(range(200))
    assert repr(columns) == "<Columns of 2 fields>"


def test_a_row_that_cannot_be_read_leaves_the_columns_whole() -> None:
    """An error from the metadata is the caller's; asked again later, the answer is right."""
    broken = True

    def metadata_of(row: int) -> dict[str, int]:
        if broken and row == 3:
            raise OSError("gone")
        return {"f": row}

    columns = Columns(metadata_of)
    condition = parsed({"field": "f", "condition": {"$gte": 2}})
    assert condition.mask(columns, 2).tolist() == [False, False]
    with pytest.raises(OSError, match="gone"):
        condition.mask(columns, 5)
    broken = False
    assert condition.mask(columns, 5).tolist() == [False, False, True, True, True]


def test_readers_agree_while_rows_are_added() -> None:
    """Threads that extend and read the same columns at once each get what `matches` says."""
    rows: list[dict[str, Any]] = [{"f": i, "g": "ab"[i % 2], "h": f"v{i % 50}"} for i in range(50)]
    columns = Columns(lambda row: rows[row])
    conditions = [
        parsed({"field": "f", "condition": {"$gte": 10, "$lt": 900}}),
        parsed({"$not": {"field": "g", "condition": {"$eq": "a"}}}),
        parsed(
            {
                "$or": [
                    {"field": "h", "condition": {"$in": ["v3", "v7"]}},
                    {"$not": EQ | {"field": "f"}},
                ]
            }
        ),
    ]
    failures: list[BaseException] = []
    done = threading.Event()

    def read(seed: int) -> None:
        try:
            turn = seed
            while True:
                last = done.is_set()
                n_rows = len(rows)
                condition = conditions[turn % len(conditions)]
                mask = condition.mask(columns, n_rows)
                assert mask.tolist() == [condition.matches(rows[row]) for row in range(n_rows)]
                turn += 1
                if last:
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for reader in readers:
        reader.start()
    for i in range(50, 1500):
        rows.append({"f": i, "g": "ab"[i % 2], "h": f"v{i % 50}"})  # noqa: PERF401 - readers watch
    done.set()
    for reader in readers:
        reader.join()
    assert not failures, failures[0]
