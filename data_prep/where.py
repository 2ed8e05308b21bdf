"""Expressions over columns, such as `similarity >= 0.28 and original_width >= 200`: which rows a corpus keeps.

Python's syntax, of which only this is allowed: names of columns, numbers, texts, `and`, `or`, `not`, comparisons
(chained ones too), `in (...)`, `not in (...)`, `is None`, `is not None`, and + - * /. Nothing is called or executed.
Where a value that matters is missing, the row is not kept.
"""

from __future__ import annotations

import ast
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
}


class Where:
    """A checked expression. columns: the names that it uses, in alphabetical order."""

    def __init__(self, text: str) -> None:
        """Raises UserError, naming the part that is not allowed."""
        self.text = text
        try:
            self._body = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise UserError(f"where {text!r} is no expression: {getattr(error, 'msg', error)}") from error
        self._check(self._body)
        names = (node.id for node in ast.walk(self._body) if isinstance(node, ast.Name))
        self.columns = tuple(sorted(set(names)))

    def keep(self, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        """(rows,) bool: for which rows it holds.

        Raises UserError for a column that the table lacks, or types that cannot be compared.
        """
        present = table.schema.names
        if absent := [name for name in self.columns if name not in present]:
            raise UserError(f"where {self.text!r}: no column {absent[0]!r}; there are {', '.join(present) or 'none'}")
        try:
            value = self._value(self._body, table)
            if value.type != pa.bool_():
                raise UserError(f"where {self.text!r} is no condition: it gives {value.type}, not true or false")
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UserError(f"where {self.text!r} cannot be evaluated on these columns: {error}") from error
        if isinstance(value, pa.Scalar):
            return np.full(table.num_rows, bool(value.as_py()))
        return pc.fill_null(value, False).to_numpy(zero_copy_only=False)

    def _check(self, node: ast.AST) -> None:
        allowed = (ast.BoolOp, ast.UnaryOp, ast.Compare, ast.BinOp, ast.Name, ast.Constant, ast.Tuple, ast.List)
        parts = (ast.And, ast.Or, ast.Not, ast.USub, ast.In, ast.NotIn, ast.Is, ast.IsNot, ast.Load)
        for inner in ast.walk(node):
            if not isinstance(inner, (*allowed, *parts, *_COMPARE, *_ARITHMETIC)):
                shown = ast.get_source_segment(self.text.strip(), inner) if isinstance(inner, ast.expr) else None
                raise UserError(
                    f"where {self.text!r}: {shown or type(inner).__name__} is not allowed; write comparisons of "
                    "columns, numbers and texts, joined by and, or, not"
                )

    def _value(self, node: ast.AST, table: Any) -> Any:
        match node:
            case ast.Name(id=name):
                return table.column(name)
            case ast.Constant(value=value):
                return pa.scalar(value)
            case ast.BoolOp(op=op, values=values):
                join = "and_kleene" if isinstance(op, ast.And) else "or_kleene"
                return reduce(lambda a, b: _call(join, a, b), [self._value(part, table) for part in values])
            case ast.UnaryOp(op=op, operand=operand):
                return _call("invert" if isinstance(op, ast.Not) else "negate", self._value(operand, table))
            case ast.BinOp(left=left, op=op, right=right):
                first = self._value(left, table)
                if isinstance(op, ast.Div):
                    first = first.cast(pa.float64())  # 1 / 2 is a half
                return _call(_ARITHMETIC[type(op)], first, self._value(right, table))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                ends = [left, *comparators]
                pairs = zip(ends, ops, ends[1:], strict=False)
                return reduce(
                    lambda a, b: _call("and_kleene", a, b), [self._compare(a, op, b, table) for a, op, b in pairs]
                )
        raise UserError(f"where {self.text!r}: a list stands where a value should")

    def _compare(self, left: ast.AST, op: ast.cmpop, right: ast.AST, table: Any) -> Any:
        value = self._value(left, table)
        if isinstance(op, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise UserError(f"where {self.text!r}: `is` asks only for None")
            return _call("is_null" if isinstance(op, ast.Is) else "is_valid", value)
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.Tuple, ast.List)):
                raise UserError(f"where {self.text!r}: `in` wants a list such as ('a', 'b')")
            choices = [self._value(element, table).as_py() for element in right.elts]
            found = _call("is_in", value, options=pc.SetLookupOptions(pa.array(choices)))
            found = _call("if_else", _call("is_valid", value), found, pa.scalar(None, pa.bool_()))
            return found if isinstance(op, ast.In) else _call("invert", found)
        return _call(_COMPARE[type(op)], value, self._value(right, table))


def _call(function: str, *arguments: Any, options: Any = None) -> Any:
    return pc.call_function(function, list(arguments), options)
