"""Where a module can be mutated, and how it then reads: cosmic-ray's operators, and one of ours.

Left out is what no test should notice: annotations, the words and numbers in a message, decorators,
and what is for Windows alone.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Keyword

Position = tuple[int, int]
"""A line, from 1, and a column, from 0."""
Place = tuple[Position, Position]

CHANGES: Final = (
    *("Comparison_" + pair for pair in ("Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Eq_GtE")),
    *(
        "Comparison_" + pair
        for pair in ("Eq_NotEq", "NotEq_Eq", "NotEq_Gt", "Is_IsNot", "IsNot_Is")
    ),
    *("Binary_" + pair for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div")),
    *("Binary_" + pair for pair in ("Mod_FloorDiv", "Pow_Mul", "BitOr_BitAnd", "BitAnd_BitOr")),
    *("Unary_USub_UAdd", "Unary_Delete_Not", "Unary_Delete_Invert"),
    *("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr"),
    *("ReplaceOrWithAnd", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ExceptionReplacer", "NumberReplacer", "ZeroIterationForLoop"),
)
"""One change a place: `+` becomes `-`, not each of eleven others, most of which die at once."""


@final
class RemoveStatement(Operator):  # type: ignore[misc, unused-ignore]
    """A call by itself, a ``raise``, or an assignment to a part of something becomes ``pass``."""

    def mutation_positions(self, node: Any) -> Iterator[Place]:
        """As cosmic-ray asks for them."""
        if node.parent is None or node.parent.type != "simple_stmt":
            return
        is_raise = node.type == "raise_stmt" or getattr(node, "value", "") == "raise"
        is_call = node.type == "atom_expr"
        is_part = node.type == "expr_stmt" and (
            node.children[0].type == "atom_expr" or getattr(node.children[1], "value", "=") != "="
        )
        if is_raise or is_call or is_part:
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:  # noqa: ARG002
        """As cosmic-ray asks for it."""
        return Keyword("pass", node.start_pos, prefix=node.get_first_leaf().prefix)

    @classmethod
    def examples(cls) -> Sequence[Any]:
        """None: they are for the tests of cosmic-ray."""
        return ()


@final
@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Args:
        name: Module, line as it reads, change: the same wherever in the file the line stands.
        module: Path in the repository.
        line: Number of the line, from 1.
        operator: Name of what changes it.
        occurrence: Which place of that operator in the module, from 0.
    """

    name: str
    module: str
    line: int
    operator: str
    occurrence: int

    def code(self, source: str) -> str | None:
        """The module with the change; ``None`` if it is then the same, or no Python."""
        changed = mutate_code(source, _operators()[self.operator](), self.occurrence)
        try:
            same = ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source))
        except SyntaxError:
            return None
        return None if same else str(changed)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All changes of a module, those that no test should notice left out."""
    left_out = list(_left_out(ast.parse(source)))
    lines = source.splitlines()
    tree = get_ast(source)
    seen: Counter[str] = Counter()
    found = []
    for operator, make in _operators().items():
        changes = make()
        places = (place for node in ast_nodes(tree) for place in changes.mutation_positions(node))
        for occurrence, (start, end) in enumerate(places):
            name = f"{module}: {lines[start[0] - 1].strip()} | {operator}"
            seen[name] += 1
            inside = [area for area in left_out if area[0] <= start and end <= area[1]]
            # The whole statement may go, its words alone may not change.
            if not inside or (operator == "RemoveStatement" and (start, end) in inside):
                nth = f" {seen[name]}" if seen[name] > 1 else ""
                found.append(Mutant(name + nth, module, start[0], operator, occurrence))
    return found


def _operators() -> dict[str, Callable[[], Any]]:
    provider = OperatorProvider()
    full = {
        "Comparison": "ReplaceComparisonOperator",
        "Binary": "ReplaceBinaryOperator",
        "Unary": "ReplaceUnaryOperator",
    }
    names = {}
    for change in CHANGES:
        family, _, pair = change.partition("_")
        names[change] = f"{full[family]}_{pair}" if family in full else change
    return {change: provider[name] for change, name in names.items()} | {
        "RemoveStatement": RemoveStatement
    }


def _left_out(tree: ast.Module) -> Iterator[Place]:
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            parts += [node.returns, *node.decorator_list]
        elif isinstance(node, ast.ClassDef):
            parts += [*node.decorator_list, *node.bases]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            parts.append(node.annotation)
        elif isinstance(node, ast.Raise | ast.JoinedStr):
            parts.append(node)
        elif isinstance(node, ast.If) and _is_elsewhere(node.test):
            parts += [node.test, *node.body]
        yield from (_place(part) for part in parts if part is not None)


def _is_elsewhere(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "sys.platform == 'win32'")


def _place(node: Any) -> Place:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
