"""Imports follow the data, by the syntax tree of every file; and the sizes we agreed on."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpq

PACKAGE = Path(__file__).resolve().parents[1] / "mpq"
FILES = sorted(PACKAGE.rglob("*.py"))
STAGES = ("mpq.sensitivity", "mpq.hardware_profiles", "mpq.solvers", "mpq.backends", "mpq.report")
NOUNS = (
    "errors",
    "layer",
    "lifetimes",
    "precision",
    "value_range",
    "cost_table",
    "pair_cost",
    "couplings",
    "long_table",
    "interactions",
    "budget",
    "problem",
    "solution",
    "assignment",
)
TORCH = ("torch", "safetensors", "transformers")


def name_of(file: Path) -> str:
    """Path inside the package, for test names."""
    return str(file.relative_to(PACKAGE))


def files_of(folder: str) -> list[Path]:
    """All Python files of a stage."""
    return sorted((PACKAGE / folder).rglob("*.py"))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Modules that some syntax nodes import; of ``from a import b`` both ``a`` and ``a.b``."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the module in full"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no function bodies, no ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from outside_functions(child)


def imports(file: Path) -> set[str]:
    """Everything that a file imports anywhere but for type checkers only."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return imported(ast.walk(tree))


def from_any(modules: set[str], *packages: str) -> list[str]:
    """The modules that belong to one of the packages."""
    return sorted(m for m in modules if any(m == p or m.startswith(f"{p}.") for p in packages))


@pytest.mark.parametrize("noun", NOUNS)
def test_nouns_know_no_stage_and_no_torch(noun: str) -> None:
    """A noun imports only other nouns, the schemas, and numpy or pandas."""
    modules = imports(PACKAGE / f"{noun}.py")

    others = {m for m in modules if m.split(".")[0] == "mpq"}
    allowed = {f"mpq.{name}" for name in (*NOUNS, "schemas")}

    assert from_any(modules, *STAGES, *TORCH) == []
    assert {".".join(m.split(".")[:2]) for m in others} <= allowed


@pytest.mark.parametrize("file", files_of("solvers"), ids=name_of)
def test_solvers_see_numbers_only(file: Path) -> None:
    """No torch, no model, no data, no file: a solver reads a ``Problem``."""
    modules = imports(file)

    known = {".".join(m.split(".")[:2]) for m in from_any(modules, "mpq")}
    allowed = {f"mpq.{name}" for name in (*NOUNS, "registry", "progress", "solvers")}

    assert from_any(modules, *TORCH, "pathlib", "io", "json", "os", "tempfile", "shutil") == []
    assert known <= allowed


@pytest.mark.parametrize("file", files_of("sensitivity"), ids=name_of)
def test_estimators_know_no_device_and_no_solver(file: Path) -> None:
    """An estimator measures a network; what its answer is used for is not its business."""
    modules = imports(file)

    assert from_any(modules, "mpq.solvers", "mpq.hardware_profiles", "mpq.backends") == []
    assert from_any(modules, "mpq.searching", "mpq.result", "mpq.cli", "mpq.report") == []


@pytest.mark.parametrize("file", files_of("hardware_profiles"), ids=name_of)
def test_profiles_see_layers_only(file: Path) -> None:
    """A profile prices layers: no torch, no model, no other stage."""
    modules = imports(file)

    known = {".".join(m.split(".")[:2]) for m in from_any(modules, "mpq")}
    allowed = {f"mpq.{name}" for name in (*NOUNS, "schemas", "hardware_profiles")}

    assert from_any(modules, *TORCH) == []
    assert known <= allowed


@pytest.mark.parametrize("folder", ["sensitivity", "solvers", "hardware_profiles", "backends"])
def test_a_stage_knows_no_verb_above_it(folder: str) -> None:
    """Stages are joined by ``searching``, ``result`` and the command line; never the reverse."""
    above = ("mpq.searching", "mpq.result", "mpq.cli", "mpq.frontier", "mpq.loading")

    found = {name_of(file): from_any(imports(file), *above) for file in files_of(folder)}

    assert {name: modules for name, modules in found.items() if modules} == {}


def test_the_command_line_imports_torch_only_inside_functions() -> None:
    """What runs at import is the standard library, typer, and nothing of ours."""
    files = sorted(PACKAGE.glob("cli*.py"))
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]

    modules = {name for tree in trees for name in imported(outside_functions(tree))}
    modules -= {"mpq.result"}  # for type checkers only

    packages = {module.split(".")[0] for module in modules}
    assert packages - set(sys.stdlib_module_names) == {"typer", "mpq"}
    ours = {module for module in modules if module.startswith("mpq.")}
    assert all(module.startswith("mpq.cli") for module in ours)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_stay_short(file: Path) -> None:
    """Past 400 lines a noun is missing."""
    lines = len(file.read_text(encoding="utf-8").splitlines())

    assert lines <= 400


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_say_what_they_are(file: Path) -> None:
    """Every file begins with a docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))

    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", ["sensitivity", "solvers", "hardware_profiles"])
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
    modules = imports(file)

    assert from_any(modules, "sensitivity", "solvers", "hardware_profiles") == []


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
    """About 25 names, none of them twice, none of them missing."""
    assert len(mpq.__all__) <= 30
    assert len(set(mpq.__all__)) == len(mpq.__all__)
    assert all(hasattr(mpq, name) for name in mpq.__all__)


def test_an_unknown_public_name() -> None:
    """A misspelled name is an ``AttributeError``, as for any module."""
    with pytest.raises(AttributeError, match="module 'mpq' has no attribute 'serach'"):
        mpq.serach  # noqa: B018


@pytest.mark.parametrize("module", ["mpq", "mpq.cli"])
def test_importing_is_light(module: str) -> None:
    """In a fresh interpreter neither torch nor numpy is loaded by the import alone."""
    heavy = ("torch", "numpy", "pandas", "matplotlib", "optuna", "pulp", "scipy")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"

    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert found.strip() == "[]"
