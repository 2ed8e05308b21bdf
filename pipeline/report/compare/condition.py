"""Conditions on runs, over columns and settings: `objective=neuclip and train.global_batch_size>=1024`.

The grammar is that of `pipeline.where`; here `=` also compares, and a word that is neither a column nor a setting is a
text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.report.compare.listing import COLUMNS
from pipeline.where import column_name, compile_where


def rows_that_meet(where: str, values: Sequence[Mapping[str, Any]], names: Collection[str]) -> list[int]:
    """Places of the rows that meet the condition. names: all that some row has. Raises UserError for others."""
    condition = compile_where(_in_python(where, names), dotted=True)
    columns = {name: _column([value.get(name) for value in values]) for name in condition.columns}
    table = pa.table({"": pa.nulls(len(values)), **columns})  # as many rows, also where it reads no column
    return [i for i, holds in enumerate(condition(table)) if holds]


def _column(values: list[Any]) -> pa.Array:
    """As truths or numbers where all are, else as texts."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in known):
        return pa.array(values)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else str(value) for value in values])


def _in_python(where: str, names: Collection[str]) -> str:
    """`objective=neuclip and train.steps>9` as pipeline.where reads it."""
    parts = re.split(r"""("[^"]*"|'[^']*')""", where)
    parts[::2] = [re.sub(r"(?<![<>=!])=(?!=)", "==", part) for part in parts[::2]]
    try:
        tree = ast.parse("".join(parts).strip(), mode="eval")
    except SyntaxError:
        return where  # and its error is told there
    return ast.unparse(_Words(where, names).visit(tree))


class _Words(ast.NodeTransformer):
    """A word on the right of a comparison that is neither a column nor a setting is a text."""

    def __init__(self, where: str, names: Collection[str]) -> None:
        self._where, self._names = where, names

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        left = column_name(node.left)
        if left is not None and left not in self._names:
            raise UserError(
                f"the condition {self._where!r}: no run has {left!r}; columns are {', '.join(COLUMNS)}, and every "
                "setting of a recipe by its dotted name"
            )
        node.comparators = [self._text(side) for side in node.comparators]
        return node

    def _text(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            node.elts = [self._text(element) for element in node.elts]
            return node
        word = column_name(node)
        return node if word is None or word in self._names else ast.Constant(word)
