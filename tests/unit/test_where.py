"""Conditions on columns mean what they say, and nothing else is ever run."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.where import compile_where

ROWS = [
    {"similarity": 0.3, "width": 640, "height": 480, "nsfw": "UNLIKELY", "safe": True, "_x": None},
    {"similarity": 0.28, "width": 100, "height": 0, "nsfw": "NSFW", "safe": False, "_x": "a"},
    {"similarity": None, "width": 9000, "height": 3, "nsfw": None, "safe": None, "_x": ""},
    {"similarity": float("nan"), "width": 200, "height": 200, "nsfw": 'it\'s "odd"', "safe": True, "_x": "b"},
]
TABLE = pa.Table.from_pylist(ROWS)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("similarity >= 0.28 and width >= 200", [0]),
        ("similarity >= 0.28 or width >= 200", [0, 1, 2, 3]),
        ("not similarity < 0.29", [0, 3]),
        ("0.2 < similarity <= 0.28", [1]),
        ("width / height < 1.4", [0, 3]),  # not in whole numbers, and a division by zero is no error
        ("width * 2 - height + 1 == 801", [0]),
        ("-1 < width and width > -5", [0, 1, 2, 3]),
        ("nsfw == 'UNLIKELY'", [0]),
        ("nsfw != 'NSFW'", [0, 3]),
        ("nsfw in ('UNLIKELY', 'NSFW')", [0, 1]),
        ("nsfw not in ['UNLIKELY', 'NSFW']", [3]),
        ('nsfw == "it\'s \\"odd\\""', [3]),
        ("width in (100, 200)", [1, 3]),
        ("safe", [0, 3]),
        ("not safe", [1]),
        ("safe == False", [1]),
        ("_x is None", [0]),
        ("_x is not None and (width > 500 or not safe)", [1, 2]),
        ("similarity is None or similarity >= 0.3", [0, 2]),
        ("True and width == height", [3]),
    ],
)
def test_it_keeps_the_rows_for_which_it_is_true(text: str, kept: list[int]) -> None:
    assert [row for row, holds in enumerate(compile_where(text)(TABLE)) if holds] == kept
    assert compile_where(text)(TABLE.slice(0, 0)).tolist() == []


def test_it_says_which_columns_it_reads_and_as_what() -> None:
    condition = compile_where("similarity >= 0.28 and (nsfw == 'a' or safe) and x is None")
    assert condition.columns == {"similarity": "number", "nsfw": "text", "safe": "boolean", "x": "any"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid syntax"),
        ("similarity >", "invalid syntax"),
        ("similarity", None),
        ("0.28", "`0.28` is not a condition"),
        ("__import__('os').system('touch /tmp/x')", "is not a condition"),
        ("open('/etc/passwd') == 'x'", "is no text"),
        ("similarity.__class__ == 1", "`similarity.__class__` is no number"),
        ("similarity >= f'{1}'", "is no number"),
        ("(lambda: 1)() > 0", "is no number"),
        ("width ** width > 3", "is no number"),
        ("width > 3 and width == 'a'", "width is a number in one place and a text in another"),
        ("width == None", "is no number"),
        ("width is 3", "is can only ask"),
        ("width in ()", "is no list"),
        ("width in height", "is no list"),
        ("[x for x in y]", "is not a condition"),
        ("(" * 300 + "a" + ")" * 300, "cannot be read"),
        ("not " * 100_000 + "a", "cannot be read"),
        ("a\0b", "cannot be read"),
    ],
)
def test_what_has_no_meaning_is_shown(text: str, message: str | None) -> None:
    if message is None:
        assert compile_where(text).columns == {"similarity": "boolean"}
        return
    with pytest.raises(UserError, match="cannot be read") as refused:
        compile_where(text)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"), [("absent > 1", "columns that are not there: absent"), ("nsfw > 1", r"nsfw \(string\)")]
)
def test_columns_that_do_not_fit_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compile_where(text)(TABLE)
