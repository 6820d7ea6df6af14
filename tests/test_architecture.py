"""Imports follow the data, by the syntax tree of every file; and the sizes we agreed on."""

import ast
import gc
import inspect
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mpq

PACKAGE = Path(__file__).resolve().parents[1] / "mpq"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "demo": 0,
    "errors": 1,
    "_support": 2,
    "network": 3,
    "quantization": 4,
    "problem": 5,
    "rounding": 5,
    "transforms": 5,
    "sensitivity": 6,
    "solvers": 6,
    "backends": 6,
    "report": 6,
    "recipes": 6,
    "callbacks": 6,
    "hardware_profiles": 7,
    "tuning": 7,
    "workflows": 8,
    "cli": 9,
    "__main__": 10,
}
"""A folder imports only itself and folders on lower floors; those on one floor do not meet."""
TORCH_FREE = ("problem", "solvers", "recipes")
"""Folders that load no torch, through everything that they import."""
STAGES = ("sensitivity", "solvers", "hardware_profiles")


def name_of(file: Path) -> str:
    """Path inside the package, for test names."""
    return str(file.relative_to(PACKAGE))


def floor_of(module: str) -> str:
    """The entry of the package that a module is in: of ``mpq.solvers.auto``, ``solvers``."""
    return module.split(".")[1]


def module_of(file: Path) -> str:
    """Dotted name of a file; a package is called as its folder."""
    parts = ("mpq", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, no ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from outside_functions(child)


def imported(nodes: Iterable[ast.AST]) -> set[str]:
    """Modules that some syntax nodes import; of ``from a import b`` both ``a`` and ``a.b``."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the module in full"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def tree_of(file: Path) -> ast.Module:
    """Syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def imports(file: Path) -> frozenset[str]:
    """Everything that a file imports: at import, inside functions, for type checkers."""
    return frozenset(imported(ast.walk(tree_of(file))))


@cache
def imports_at_import(file: Path) -> frozenset[str]:
    """What importing a file imports."""
    return frozenset(imported(outside_functions(tree_of(file))))


@cache
def closure(module: str) -> frozenset[str]:
    """All that importing a module imports, through our own modules and their packages."""
    found, waiting = set[str](), {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        if name in MODULES:
            parents = {name.rsplit(".", 1)[0]} if "." in name else set()
            waiting |= {*imports_at_import(MODULES[name]), *parents} - found
    return frozenset(found)


def from_any(modules: Iterable[str], *packages: str) -> list[str]:
    """The modules that belong to one of the packages."""
    return sorted(m for m in modules if any(m == p or m.startswith(f"{p}.") for p in packages))


def test_every_entry_of_the_package_has_a_floor() -> None:
    """The house is this table: nothing lies loose beside it."""
    entries = {path.stem for path in PACKAGE.iterdir() if path.name != "__pycache__"}

    assert entries - {"__init__", "py"} == set(FLOORS)


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != PACKAGE], ids=name_of)
def test_imports_go_one_way(file: Path) -> None:
    """A file knows its own folder and lower floors, also inside functions and for type checkers."""
    own = floor_of(module_of(file))

    others = {floor_of(m) for m in from_any(imports(file), "mpq") if m != "mpq"} - {own}

    assert {name for name in others if FLOORS.get(name, 0) >= FLOORS[own]} == set()


def test_no_file_imports_itself_through_others() -> None:
    """The graph of files has no cycle, whatever kind of import is looked at."""
    graph = {m: {x for x in imports(file) if x in MODULES} - {m} for m, file in MODULES.items()}

    order = list(TopologicalSorter(graph).static_order())

    assert len(order) >= len(MODULES)


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith(tuple(f"mpq.{f}" for f in TORCH_FREE))]
)
def test_problems_and_solvers_load_no_torch(module: str) -> None:
    """Through their whole closure: a problem is solved where torch is not installed."""
    assert from_any(closure(module), "torch", "safetensors", "transformers") == []


@pytest.mark.parametrize("file", sorted((PACKAGE / "solvers").rglob("*.py")), ids=name_of)
def test_solvers_see_numbers_only(file: Path) -> None:
    """No file, no JSON: a solver reads a ``Problem``."""
    assert from_any(imports(file), "pathlib", "io", "json", "os", "tempfile", "shutil") == []


def test_the_command_line_imports_torch_only_inside_functions() -> None:
    """What runs at import is the standard library, typer, and nothing of ours."""
    files = sorted((PACKAGE / "cli").glob("*.py"))
    at_start = closure("mpq.cli.__main__")

    packages = {module.split(".")[0] for module in at_start}

    assert packages - set(sys.stdlib_module_names) == {"typer", "mpq"}
    assert files


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_stay_short(file: Path) -> None:
    """Past 400 lines a noun is missing."""
    lines = len(file.read_text(encoding="utf-8").splitlines())

    assert lines <= 400


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_signatures_stay_narrow(file: Path) -> None:
    """Past 10 parameters a noun is missing; records of many fields are filled by name."""
    wide = [
        node.name
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef)
        and len([*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]) > 10
    ]

    assert wide == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_say_what_they_are(file: Path) -> None:
    """Every file begins with a docstring."""
    assert ast.get_docstring(tree_of(file))


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.rglob("*.py")))
def test_a_test_file_imports_no_other(file: Path) -> None:
    """What several need lies in a file of its own: reading one test file is enough."""
    names = {name for module in imports(file) for name in module.split(".")[1:-1]}

    assert [name for name in names if name.startswith("test_")] == []


@pytest.mark.parametrize("name", STAGES)
def test_the_root_links_to_the_stages(name: str, root: Path) -> None:
    """The three stages are the first thing that a visitor of the repository sees."""
    link = root / name

    assert link.is_symlink()
    assert link.readlink() == Path("mpq") / name
    assert link.resolve() == PACKAGE / name
    assert (link / "__init__.py").is_file()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_code_imports_through_the_package(file: Path) -> None:
    """Never through a link of the root: ``mpq.solvers``, not ``solvers``."""
    assert from_any(imports(file), *STAGES) == []


@pytest.mark.parametrize("name", mpq.__all__)
def test_public_names_are_documented(name: str) -> None:
    """Every public class and function has a docstring of its own, and so have its methods."""
    public = getattr(mpq, name)
    documented = public if inspect.isclass(public) or inspect.isfunction(public) else type(public)

    members = vars(documented) if inspect.isclass(documented) else {}
    bare = [
        member
        for member, value in members.items()
        if not member.startswith("_")
        and (inspect.isfunction(value) or isinstance(value, property | classmethod))
        and not inspect.getdoc(value)
    ]

    assert documented.__doc__
    assert not documented.__doc__.startswith(f"{documented.__name__}("), "made by dataclass"
    assert bare == []


def test_public_names_are_few_and_sorted() -> None:
    """Verbs, nouns, registries, errors: none of them twice, none of them missing."""
    own = [n for n in mpq.__all__ if not n.isupper() and not n.endswith("Error")]
    assert len(own) <= 29, "beside the registries and the errors"
    assert len(set(mpq.__all__)) == len(mpq.__all__)
    assert all(hasattr(mpq, name) for name in mpq.__all__)


def test_tab_completion_shows_the_public_names() -> None:
    """``dir(mpq)`` has what ``mpq.__all__`` has, and no helper of the lazy imports."""
    assert {name for name in dir(mpq) if not name.startswith("_")} == set(mpq.__all__)


def test_an_unknown_public_name() -> None:
    """A misspelled name is an ``AttributeError``, as for any module."""
    with pytest.raises(AttributeError, match="module 'mpq' has no attribute 'serach'"):
        mpq.serach  # noqa: B018


@pytest.mark.parametrize("is_on", [True, False])
def test_garbage_is_collected_as_before(is_on: bool) -> None:
    """A public name is loaded without; then it is as the user had it."""
    (gc.enable if is_on else gc.disable)()
    try:
        assert callable(mpq.search)
        assert gc.isenabled() is is_on
    finally:
        gc.enable()


@pytest.mark.parametrize("module", ["mpq", "mpq.cli.__main__"])
def test_importing_is_light(module: str) -> None:
    """In a fresh interpreter neither torch nor numpy is loaded by the import alone."""
    heavy = ("torch", "numpy", "pandas", "matplotlib", "optuna", "pulp", "scipy")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"

    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert found.strip() == "[]"


def test_a_search_does_without_torchs_compiler() -> None:
    """A dispatch mode imports it at its first operator, which takes seconds, unless it says no."""
    code = (
        "import sys, torch, mpq; torch.manual_seed(0)\n"
        "net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))\n"
        "mpq.search(mpq.Task(net.eval(), [torch.randn(8, 6)]), {'weight_bytes': 120})\n"
        "print('torch._dynamo' in sys.modules)"
    )

    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert found.strip() == "False"
