"""A condition on columns of the metadata, such as `similarity >= 0.28 and original_width >= 200`.

Python's grammar, of which comparisons, `and or not in`, arithmetic, numbers, texts, `True`, `False` and `None` mean
something; nothing is ever evaluated as Python. A condition on a null is neither true nor false, so the row goes.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipeline.errors import UserError

Kind = Literal["number", "text", "boolean", "any"]  # any: only whether there is a value
_COMPARE = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_ARITHMETIC = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: pc.divide(a.cast(pa.float64()), b.cast(pa.float64())),  # by zero: infinite
}


@dataclass(frozen=True)
class Where:
    """text: as the user wrote it. columns: what it reads, and as what. expression: the same for pyarrow."""

    text: str
    columns: dict[str, Kind]
    expression: pc.Expression

    def __call__(self, rows: pa.Table | pa.RecordBatch) -> np.ndarray:
        """Which rows meet it, bool [rows]. Raises UserError where a column is missing or cannot be compared so."""
        missing = self.columns.keys() - set(rows.schema.names)
        if missing:
            raise UserError(
                f"the condition {self.text!r} wants columns that are not there: {', '.join(sorted(missing))}"
            )
        batches = [rows] if isinstance(rows, pa.RecordBatch) else rows.to_batches()
        try:
            scanner = ds.Scanner.from_batches(batches, schema=rows.schema, columns={"holds": self.expression})
            return scanner.to_table()["holds"].fill_null(False).to_numpy()
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            columns = ", ".join(f"{name} ({rows.schema.field(name).type})" for name in self.columns)
            raise UserError(f"the condition {self.text!r} cannot be applied to {columns}: {error}") from error


def compile_where(text: str, dotted: bool = False) -> Where:
    """Raises UserError that shows the part which has no meaning. dotted: columns may be named as `train.steps`."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        parser = _Parser(text, dotted)
        return Where(text, parser.columns, parser.truth(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"the condition {text!r} cannot be read: {getattr(error, 'msg', None) or error}") from error


def column_name(node: ast.expr) -> str | None:
    """The column that stands there, with dots where its name has them (`train.steps`); None for anything else."""
    if isinstance(node, ast.Attribute):
        before = column_name(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


@dataclass
class _Parser:
    text: str
    dotted: bool
    columns: dict[str, Kind] = field(default_factory=dict)

    def truth(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=operator, values=values):
                parts = [self.truth(value) for value in values]
                result = parts[0]
                for part in parts[1:]:
                    result = result & part if isinstance(operator, ast.And) else result | part
                return result
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.truth(operand)
            case ast.Compare(left=left, ops=operators, comparators=others):
                terms = [left, *others]
                links = [self._link(a, operator, b) for a, operator, b in zip(terms, operators, others, strict=False)]
                result = links[0]
                for link in links[1:]:
                    result = result & link
                return result
            case ast.Name() | ast.Attribute() | ast.Constant(value=True | False):
                return self._value(node, "boolean")
        raise self._meaningless(node, "is not a condition")

    def _link(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(operator, ast.Is | ast.IsNot):
            name = self._column(left)
            if name is None or not (isinstance(right, ast.Constant) and right.value is None):
                raise self._meaningless(right, "is can only ask `column is None`")
            self.columns.setdefault(name, "any")
            missing = pc.field(name).is_null()
            return missing if isinstance(operator, ast.Is) else ~missing
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
                raise self._meaningless(right, "is no list of values, such as ('a', 'b')")
            kind = self._kind(left, *right.elts)
            column = self._value(left, kind)
            same = [column == self._value(value, kind) for value in right.elts]
            result = same[0]
            for other in same[1:]:
                result = result | other
            return result if isinstance(operator, ast.In) else ~result
        kind = self._kind(left, right)
        return _COMPARE[type(operator)](self._value(left, kind), self._value(right, kind))

    def _kind(self, *nodes: ast.expr) -> Kind:
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, bool):
                return "boolean"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                return "text"
        return "number"

    def _value(self, node: ast.expr, kind: Kind) -> pc.Expression:
        match node:
            case ast.Name() | ast.Attribute() if name := self._column(node):
                if self.columns.get(name, "any") not in ("any", kind):
                    raise ValueError(f"{name} is a {self.columns[name]} in one place and a {kind} in another")
                self.columns[name] = kind
                return pc.field(name)
            case ast.Constant(value=bool()) if kind == "boolean":
                return pc.scalar(node.value)
            case ast.Constant(value=str()) if kind == "text":
                return pc.scalar(node.value)
            case ast.Constant(value=int() | float()) if kind == "number" and not isinstance(node.value, bool):
                return pc.scalar(node.value)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return pc.scalar(-number)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC and kind == "number":
                return _ARITHMETIC[type(operator)](self._value(left, kind), self._value(right, kind))
        raise self._meaningless(node, f"is no {kind}")

    def _column(self, node: ast.expr) -> str | None:
        return column_name(node) if self.dotted or isinstance(node, ast.Name) else None

    def _meaningless(self, node: ast.expr, why: str) -> ValueError:
        return ValueError(f"`{ast.unparse(node)}` {why}")
