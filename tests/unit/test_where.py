"""Column expressions: against Python itself where nothing is missing, and what they refuse."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.where import Where
from pipeline.errors import UserError

ROWS = [
    {"a": a, "b": b, "name": name}
    for a, b, name in [(1, 0.5, "x"), (2, -1.0, "y"), (0, 2.25, "x y"), (-3, 0.0, ""), (7, 0.28, "ä"), (2, 2.0, "z")]
]
TABLE = pa.Table.from_pylist(ROWS)

numbers = st.sampled_from(["a", "b", "1", "2", "0.28", "-3", "a + 1", "b * 2", "a - b", "(a + b) / 2"])
comparisons = st.builds("{} {} {}".format, numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers)
chains = st.builds("{} < {} <= {}".format, numbers, numbers, numbers)
texts = st.sampled_from(["name == 'x'", "name != 'ä'", "name in ('x', 'z')", "name not in ('x', 'z')", "a in (1, 2)"])
expressions = st.recursive(
    comparisons | chains | texts,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=6,
)


@given(expressions)
@settings(max_examples=200, deadline=None)
def test_it_means_what_it_means_in_python(text):
    wanted = [bool(eval(text, {}, dict(row))) for row in ROWS]
    assert Where(text).keep(TABLE).tolist() == wanted


def test_a_missing_value_never_keeps_a_row_unless_it_is_asked_for():
    table = pa.table({"a": [1, None, 3], "b": [None, None, True]})
    for text, wanted in {
        "a > 2": [False, False, True],
        "not a > 2": [True, False, False],
        "a is None": [False, True, False],
        "a is not None": [True, False, True],
        "a not in (1, 2)": [False, False, True],
        "a > 2 or b is None": [True, True, True],
        "b": [False, False, True],
        "1 < 2": [True, True, True],
    }.items():
        assert Where(text).keep(table).tolist() == wanted, text


def test_it_says_which_columns_it_needs():
    assert Where("similarity >= 0.28 and original_width >= 200 or 'c' == name").columns == (
        "name",
        "original_width",
        "similarity",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a >", "is no expression"),
        ("", "is no expression"),
        ("__import__('os').system('x')", "is not allowed"),
        ("a.b > 1", "a.b is not allowed"),
        ("[a for a in b]", "is not allowed"),
        ("a is b", "`is` asks only for None"),
        ("a in b", "`in` wants a list"),
        ("(a, b)", "a list stands where a value should"),
        ("missing > 1", "no column 'missing'; there are a, b, name"),
        ("name > 1", "cannot be evaluated on these columns"),
        ("a + 1", "is no condition: it gives int64"),
    ],
)
def test_what_it_is_not_is_said(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        Where(text).keep(TABLE)
