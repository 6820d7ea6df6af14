"""Measure how a package is built: entries, floors and cycles of its imports, signatures, comments.

    python scripts/house.py mpq
    python scripts/house.py ../before/mpq mpq

Takes the folders of packages and prints JSON, so that before and after can be compared. Nothing is
imported; all is read from the syntax. What is counted:

- ``imports``: arrows of the import graph between files, and between the entries of the folder
  (its modules and sub-packages). Three graphs, each within the next: what runs at import, with what
  is imported inside functions, with what is under ``if TYPE_CHECKING``. ``floors`` is the number of
  nodes on the longest path, a cycle being one node. ``cycles`` are the strongly connected
  components with more than one member. That ``a.b.c`` runs the ``__init__`` of ``a.b`` is no arrow.
- ``widest_signature``: parameters without ``self`` and ``cls``. ``widest_dataclass``: its fields.
- ``comments``: lines with a comment that is for a person, not for a tool, per 100 lines of code
  (neither blank nor docstring nor comment). Shapes at line ends are counted beside them.
- ``functions``: lines of the bodies, without docstrings.
- ``docstring_arguments``: entries under ``Args`` and ``Attributes``; a bare genitive is one that
  says whose the argument is and not what: "Of each."
"""

import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Graph = dict[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

KINDS = ("at_import", "and_in_functions", "and_type_checking")
CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
FOR_TOOLS = re.compile(r"#\s*(!|type:|noqa|fmt:|pragma|ruff:|mypy:|isort:)")
SHAPE = re.compile(r"#\s*\[")
SECTION = re.compile(r"(Args|Attributes):")
ENTRY = re.compile(r"\*{0,2}\w+(?: \([^)]*\))?: (.*)")
GENITIVE = re.compile(r"Of\b")
LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Module:
    """One file of the package, read once.

    Args:
        name: In full, ``mpq.solvers``; a folder's is that of its ``__init__.py``.
        is_package: Whether it is an ``__init__.py``.
        text: What the file holds.
        tree: The syntax of ``text``.
    """

    name: str
    is_package: bool
    text: str
    tree: ast.Module

    @classmethod
    def read(cls, path: Path, package: Path) -> "Module":
        """Read a file of the package in the folder ``package``."""
        parts = path.relative_to(package.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        name = ".".join(parts[:-1] if is_package else parts)
        return cls(name, is_package, text, ast.parse(text))


def main() -> None:
    """Print the measures of every package named on the command line."""
    paths = sys.argv[1:]
    if not paths:
        sys.exit("expected the folders of packages, got none; try `python scripts/house.py mpq`")
    found = {path: measure(Path(path)) for path in paths}
    command = " ".join(["python", "scripts/house.py", *paths])
    print(json.dumps({"command": command, **found}, indent=1))


def measure(package: Path) -> dict[str, Any]:
    """Everything about one package.

    Raises:
        SystemExit: The folder is no package.
    """
    package = package.resolve()
    if not (package / "__init__.py").is_file():
        sys.exit(f"{package}: expected the folder of a package, but it has no __init__.py")
    modules = [Module.read(path, package) for path in sorted(package.rglob("*.py"))]
    readme = package.parent / "README.md"
    return {
        "entries": len([path for path in package.iterdir() if path.name != "__pycache__"]),
        "loose_modules": len([p for p in package.glob("*.py") if p.name != "__init__.py"]),
        "files": len(modules),
        "imports": imports_of(modules),
        "widest_signature": widest_signatures(modules),
        "widest_dataclass": widest_dataclass(modules),
        "comments": comments_of(modules),
        "functions": function_lengths(modules),
        "docstring_arguments": docstring_arguments(modules),
        "readme_bytes": readme.stat().st_size if readme.is_file() else None,
    }


def imports_of(modules: list[Module]) -> dict[str, Any]:
    """The import graph between files and between entries, for each of ``KINDS``."""
    arrows = list(arrows_of(modules))
    files = {module.name for module in modules}
    found = {}
    for last, kind in enumerate(KINDS):
        chosen = [(source, target) for source, target, of in arrows if KINDS.index(of) <= last]
        between = [(entry_of(source), entry_of(target)) for source, target in chosen]
        found[kind] = {
            "entries": shape_of(graph_of({entry_of(file) for file in files}, between)),
            "files": shape_of(graph_of(files, chosen)),
        }
    return found


def entry_of(module: str) -> str:
    """The entry of the package's folder in which a module lies: ``pkg.a`` for ``pkg.a.b.c``."""
    return ".".join(module.split(".")[:2])


def arrows_of(modules: list[Module]) -> Iterator[tuple[str, str, str]]:
    """Who imports whom, and of which of ``KINDS`` the import is."""
    names = {module.name for module in modules}
    for module in modules:
        for node, kind in statements(module.tree, KINDS[0]):
            for target in imported(node, module):
                known = within(target, names)
                if known:
                    yield module.name, known, kind


def statements(node: ast.AST, kind: str) -> Iterator[tuple[ast.stmt, str]]:
    """All import statements below a node, each with its kind."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, kind
        elif isinstance(child, ast.If) and ast.unparse(child.test) in CHECKING:
            yield from statements(ast.Module(child.body, []), KINDS[2])
            yield from statements(ast.Module(child.orelse, []), kind)
        elif isinstance(child, Function | ast.Lambda):
            # An ``if TYPE_CHECKING`` stays one, also when functions are defined in it.
            yield from statements(child, max(kind, KINDS[1], key=KINDS.index))
        else:
            yield from statements(child, kind)


def imported(node: ast.stmt, module: Module) -> list[str]:
    """Names that an import statement asks for, in full; the last part may be no module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    base = [node.module] if node.module else []
    if node.level:
        # One dot is the module's own package: for an ``__init__.py`` that is the module itself.
        parts = module.name.split(".")
        base = parts[: len(parts) - node.level + module.is_package] + base
    return [".".join([*base, alias.name]) for alias in node.names]


def within(name: str, modules: set[str]) -> str | None:
    """The module that holds a name: itself, or the longest beginning of it that is a module."""
    parts = name.split(".")
    beginnings = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in modules), None)


def graph_of(nodes: Iterable[str], arrows: Iterable[tuple[str, str]]) -> Graph:
    """A graph without loops from a node to itself."""
    graph: Graph = {node: set() for node in nodes}
    for source, target in arrows:
        if source != target:
            graph[source].add(target)
    return graph


def shape_of(graph: Graph) -> dict[str, Any]:
    """Arrows, floors and cycles of a graph."""
    components = strong_components(graph)
    return {
        "arrows": sum(map(len, graph.values())),
        "floors": longest_path(graph, components),
        "cycles": sorted(sorted(members) for members in components if len(members) > 1),
    }


def strong_components(graph: Graph) -> list[frozenset[str]]:
    """Sets of nodes that all reach each other. Quadratic, which is plenty for a few hundred."""
    reached = {node: reachable(graph, node) for node in graph}
    return list({frozenset(b for b in reached[a] if a in reached[b]) for a in graph})


def reachable(graph: Graph, start: str) -> set[str]:
    """The nodes that can be reached from a node, itself among them."""
    found, open_nodes = {start}, [start]
    while open_nodes:
        new = graph[open_nodes.pop()] - found
        found |= new
        open_nodes += new
    return found


def longest_path(graph: Graph, components: list[frozenset[str]]) -> int:
    """How many components lie on the longest path."""
    home = {node: component for component in components for node in component}

    @cache
    def floor(component: frozenset[str]) -> int:
        below = {home[target] for node in component for target in graph[node]} - {component}
        return 1 + max(map(floor, below), default=0)

    return max(map(floor, components))


def functions_of(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function, bool]]:
    """All functions with their full names, and whether each is a method bound to something."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef):
            yield from functions_of(child, prefix)
            continue
        name = f"{prefix}.{child.name}"
        if not isinstance(child, ast.ClassDef):
            yield name, child, isinstance(node, ast.ClassDef) and not has(child, "staticmethod")
        yield from functions_of(child, name)


def has(node: Function | ast.ClassDef, decorator: str) -> bool:
    """Whether a definition has a decorator, called or not."""
    return any(re.search(rf"\b{decorator}\b", ast.unparse(d)) for d in node.decorator_list)


def widest_signatures(modules: list[Module]) -> dict[str, Any]:
    """The function with the most parameters, among the public ones and among all."""
    widths = [
        (num_parameters(function) - is_bound, name)
        for module in modules
        for name, function, is_bound in functions_of(module.tree, module.name)
    ]
    public = [(width, name) for width, name in widths if is_public(name)]
    return {"public": widest(public, "parameters"), "all": widest(widths, "parameters")}


def is_public(name: str) -> bool:
    """Whether no part of a name is private; ``__init__`` is not."""
    return all(not part.startswith("_") or part.endswith("__") for part in name.split("."))


def num_parameters(function: Function) -> int:
    """Parameters of every kind, ``self`` among them."""
    a = function.args
    starred = [part for part in (a.vararg, a.kwarg) if part is not None]
    return len(a.posonlyargs + a.args + a.kwonlyargs) + len(starred)


def widest_dataclass(modules: list[Module]) -> dict[str, Any] | None:
    """The dataclass with the most fields of its own: they are parameters as well."""
    classes = [
        (sum(isinstance(part, ast.AnnAssign) for part in node.body), f"{module.name}.{node.name}")
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and has(node, "dataclass")
    ]
    return widest(classes, "fields")


def widest(widths: list[tuple[int, str]], what: str) -> dict[str, Any] | None:
    """The largest of them; of equals the first in the alphabet."""
    if not widths:
        return None
    width, name = min(widths, key=lambda pair: (-pair[0], pair[1]))
    return {"name": name, what: width}


def comments_of(modules: list[Module]) -> dict[str, Any]:
    """Comments for a person, shapes at line ends, and lines of code."""
    code = comments = shapes = 0
    for module in modules:
        lines, found = code_and_comments(module)
        spoken = {n: text for n, text in found.items() if not FOR_TOOLS.match(text)}
        at_end = {n for n, text in spoken.items() if n in lines and SHAPE.match(text)}
        code, comments = code + len(lines), comments + len(spoken) - len(at_end)
        shapes += len(at_end)
    return {
        "code_lines": code,
        "comments": comments,
        "per_100_lines": round(100 * comments / max(code, 1), 2),
        "shapes_at_line_ends": shapes,
    }


def code_and_comments(module: Module) -> tuple[set[int], dict[int, str]]:
    """Numbers of the lines with code, docstrings left out; and comments by line number."""
    code: set[int] = set()
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string
        elif token.type not in LAYOUT:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in documented(module.tree):
        code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return code, comments


def documented(tree: ast.Module) -> list[ast.Expr]:
    """The statements that are docstrings."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    firsts = [n.body[0] for n in ast.walk(tree) if isinstance(n, nodes) and ast.get_docstring(n)]
    return [first for first in firsts if isinstance(first, ast.Expr)]


def function_lengths(modules: list[Module]) -> dict[str, Any]:
    """Number of functions, and how many lines their bodies have."""
    lengths = sorted(
        (body_length(function), name)
        for module in modules
        for name, function, _ in functions_of(module.tree, module.name)
    )
    if not lengths:
        return {"number": 0}
    numbers = [length for length, _ in lengths]
    return {
        "number": len(numbers),
        "median_lines": statistics.median(numbers),
        "percentile_90_lines": numbers[(9 * len(numbers) + 9) // 10 - 1],  # by nearest rank
        "longest": {"name": lengths[-1][1], "lines": numbers[-1]},
    }


def body_length(function: Function) -> int:
    """Lines from the first statement after the docstring to the last; 0 where there is none."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def docstring_arguments(modules: list[Module]) -> dict[str, int]:
    """Entries of all docstrings, and those among them that are bare genitives."""
    texts = [
        text
        for module in modules
        for node in documented(module.tree)
        if isinstance(node.value, ast.Constant)
        for text in argument_texts(str(node.value.value))
    ]
    return {"entries": len(texts), "bare_genitives": sum(map(is_genitive, texts))}


def is_genitive(text: str) -> bool:
    """Whether a description begins with the owner: "Of each."."""
    return GENITIVE.match(text) is not None


def argument_texts(docstring: str) -> Iterator[str]:
    """The first line of every description under ``Args:`` and ``Attributes:``."""
    section = None  # how far the heading is indented, inside a section
    level = None  # how far its entries are
    for line in docstring.expandtabs().splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if SECTION.fullmatch(text):
            section, level = indent, None
        elif text and section is not None and indent <= section:
            section = None
        elif text and section is not None:
            level = indent if level is None else level
            entry = ENTRY.fullmatch(text) if indent == level else None
            if entry:
                yield entry[1]


if __name__ == "__main__":
    main()
