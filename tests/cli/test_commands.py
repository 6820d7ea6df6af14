"""Every command of ``mpq``, in process; and that ``mpq --help`` is quick."""

import csv
import json
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.solvers import Lagrangian
from tests.user_file import user_file

USER_FILE = user_file(num_batches=4)
ROUNDING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)
        self.eval()

    def forward(self, x):
        return self.b(torch.round(self.a(x).relu() * 4) / 4)

def data():
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.randn(32, 16, generator=generator)
"""
FILES = {
    "assignment.json",
    "assignment.safetensors",
    "table.csv",
    "comparison.csv",
    "frontier.csv",
    "frontier.json",
    "frontier.png",
    "bits.png",
    "problem.json",
    "result.json",
    "made.json",
    "report.html",
}
FAST = ("--sensitivity", "weight-error", "--weight-range", "minmax", "--activation-range", "minmax")
LIMIT = ("--limit", "weight_bytes=50KiB", "--precisions", "w4a8,w8a8")


def call(*arguments: str | Path) -> Result:
    """One command, which must succeed."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV file without pandas."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The first command of the README: a search on the built-in demo."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for seconds in ("_FIRST_LINE_S", "_SECONDS_BETWEEN"):  # lines of a search that takes long
            patch.setattr(f"mpq.callbacks.progress.{seconds}", 0.0)
        return folder, call("search", "--output", folder, "--points", "4")


def test_search_writes_all_files(run: tuple[Path, Result]) -> None:
    """All files are there, nothing else is, and each is said to be written."""
    folder, result = run

    assert {path.name for path in folder.iterdir()} == FILES
    assert all(str(name) in result.stdout for name in FILES)


@pytest.mark.parametrize("command", ["search", "frontier"])
def test_the_page_says_what_was_loaded_and_which_python_ran(
    run: tuple[Path, Result], tmp_path: Path, command: str
) -> None:
    """Of a command, too, as of ``mpq.search``: with made.json, and on the page."""
    folder = run[0]
    if command == "frontier":
        folder = tmp_path / "frontier"
        call("frontier", *LIMIT, *FAST, "--points", "3", "--output", tmp_path)

    made = json.loads((folder / "made.json").read_text())
    versions, sources = made["versions"], made["sources"]
    page = (folder / "report.html").read_text(encoding="utf-8")

    assert versions["python"] == platform.python_version()
    assert re.search(rf"python</t[hd]>\s*<td[^>]*>{re.escape(versions['python'])}<", page)
    assert sources["network"] == "mpq.demo:make_net, the built-in demonstration"
    assert f"{sources['network']}; class DigitsNet" in page
    assert f"; {sources['calibration']}" in page


def test_search_shows_layers_comparison_and_limits(run: tuple[Path, Result]) -> None:
    """The terminal names layers and networks, says how the solver ended and what limits hold."""
    _, result = run

    for words in ("blocks.4.depthwise.conv", "original", "w8a8", "cortex-m7"):
        assert words in result.stdout
    assert "branch-and-bound: optimal: no assignment within the budgets" in result.stdout
    assert "auto took branch-and-bound: interactions of" in result.stdout
    assert re.search(r"predicted loss: 0\.\d+ nats, proved bound 0\.\d+ \(gap ", result.stdout)


def test_search_shows_progress_on_standard_error(run: tuple[Path, Result]) -> None:
    """How far it is stands on standard error, so that standard output can be kept."""
    _, result = run

    assert "output sketch" in result.stderr
    assert "output sketch" not in result.stdout


def test_the_tables_can_be_read(run: tuple[Path, Result]) -> None:
    """A plain CSV reader finds every layer, every network, every frontier point, with units."""
    folder, _ = run
    layers, networks, points = (
        rows_of(folder / f"{name}.csv") for name in ("table", "comparison", "frontier")
    )

    assert len(layers) == 18
    assert {"layer", "kind", "weights", "macs", "precision", "weight_bytes"} <= set(layers[0])
    assert {"predicted_loss_share", "latency_share", "weight_bytes_share"} <= set(layers[0])
    assert [row["network"] for row in networks][:2] == ["original", "result"]
    assert {"measured_kl_nats", "measured_accuracy", "latency_seconds"} <= set(networks[0])
    assert {row["point"] for row in points} == {
        "frontier",
        "result",
        "w2a8",
        "w4a4",
        "w4a8",
        "w8a8",
    }
    assert all(float(row["weight_bytes"]) > 0 for row in points)


def test_the_pictures_are_pictures(run: tuple[Path, Result]) -> None:
    """Both begin as PNG files do, and have something on them."""
    folder, _ = run

    pictures = [(folder / name).read_bytes() for name in ("frontier.png", "bits.png")]

    assert all(picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures)
    assert all(len(picture) > 10_000 for picture in pictures)


@pytest.mark.usefixtures("small_demo")
def test_the_additive_problem_can_be_solved_again(tmp_path: Path) -> None:
    """``problem.json`` holds all that an ILP needs: the answer is that of the search, proved."""
    options = (*LIMIT, "--sensitivity", "sketch", "--solver", "ilp")
    stdout = call("search", *options, *FAST[2:], "--points", "2", "--output", tmp_path).stdout
    problem = mpq.Problem.from_json((tmp_path / "problem.json").read_text(encoding="utf-8"))

    solution = mpq.SOLVERS.build("ilp").solve(problem)

    assignment = mpq.Assignment.load(tmp_path / "assignment.json")
    assert "ilp (HiGHS): optimal" in stdout
    assert solution.precisions(problem) == assignment.precisions
    assert solution.loss == pytest.approx(assignment.metadata.predicted_loss)


def test_the_problem_can_be_solved_again(run: tuple[Path, Result]) -> None:
    """``problem.json`` holds tables, limits and interactions: it has the same answer."""
    folder, _ = run
    problem = mpq.Problem.from_json((folder / "problem.json").read_text(encoding="utf-8"))
    chosen = mpq.Assignment.load(folder / "assignment.json").precisions
    columns = np.array([problem.loss.index_of(chosen[name]) for name in problem.loss.layers])

    solution = mpq.SOLVERS.build("auto").solve(problem)

    assert problem.is_feasible(columns)
    assert problem.interactions is not None
    np.testing.assert_array_equal(solution.columns, columns)


def test_evaluate_prints_what_the_search_measured(run: tuple[Path, Result]) -> None:
    """The JSON on standard output equals the rows of ``comparison.csv``."""
    folder, _ = run
    rows = {row["network"]: row for row in rows_of(folder / "comparison.csv")}

    printed = json.loads(call("evaluate", folder / "assignment.json").stdout)

    found, expected = printed["quantized"], rows["result"]
    assert found["kl_nats"] == pytest.approx(float(expected["measured_kl_nats"]), rel=1e-6)
    assert found["accuracy"] == pytest.approx(float(expected["measured_accuracy"]))
    assert found["cross_entropy_nats"] == pytest.approx(
        float(expected["measured_cross_entropy_nats"]), rel=1e-6
    )
    assert printed["original"]["accuracy"] == float(rows["original"]["measured_accuracy"])
    assert found["num_examples"] == 500


def test_apply_writes_the_rounded_weights(run: tuple[Path, Result], tmp_path: Path) -> None:
    """Every assigned weight has at most 2^bits values per channel; the rest is the network's."""
    folder, _ = run
    path = tmp_path / "new" / "quantized.safetensors"
    layers = json.loads((folder / "assignment.json").read_text())["layers"]

    result = call("quantize", folder / "assignment.json", "--output", path)

    tensors = load_file(path)
    levels = {
        layer["name"]: max(len(row.unique()) for row in tensors[f"{layer['name']}.weight"])
        for layer in layers
    }
    assert f"wrote {path}" in result.stdout.replace("\n", "")
    assert all(levels[layer["name"]] <= 2 ** layer["weight"]["bits"] for layer in layers)
    assert torch.equal(tensors["head.bias"], demo.make_net().get_parameter("head.bias"))


def test_export_bits(run: tuple[Path, Result]) -> None:
    """The default is a flat mapping from layer to bits, on standard output."""
    folder, _ = run
    layers = json.loads((folder / "assignment.json").read_text())["layers"]

    printed = json.loads(call("export", folder / "assignment.json").stdout)

    assert printed == {
        layer["name"]: {
            "weight_bits": layer["weight"]["bits"],
            "activation_bits": layer["activation"]["bits"],
        }
        for layer in layers
    }


def test_export_json(run: tuple[Path, Result]) -> None:
    """``json`` is the assignment itself, without the mark of the run that is in every file."""
    folder, _ = run

    printed = call("export", folder / "assignment.json", "--to", "text:style=json").stdout

    written = json.loads((folder / "assignment.json").read_text(encoding="utf-8"))
    assert written.pop("run_id").startswith("mpq-run-")
    assert json.loads(printed) == written


def test_export_csv_to_a_file(run: tuple[Path, Result], tmp_path: Path) -> None:
    """``csv`` has a row per layer; ``--output`` writes it to a file in a new folder."""
    folder, _ = run
    path = tmp_path / "new" / "bits.csv"

    call("export", folder / "assignment.json", "--to", "text:style=csv", "--output", path)

    rows = rows_of(path)
    assert [row["layer"] for row in rows] == [r["layer"] for r in rows_of(folder / "table.csv")]
    assert {row["activation"] for row in rows} <= {"int8", "int4"}


def test_export_markdown(run: tuple[Path, Result]) -> None:
    """``markdown`` is a table that can be pasted."""
    folder, _ = run

    lines = call(
        "export", folder / "assignment.json", "--to", "text:style=markdown"
    ).stdout.splitlines()

    assert lines[0].startswith("| layer | kind | precision |")
    assert len(lines) == 2 + 18
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.usefixtures("small_demo")
def test_frontier_measured(tmp_path: Path) -> None:
    """``frontier --measure`` writes a measured loss beside every point; its search lies behind."""
    call("frontier", *LIMIT, *FAST, "--points", "3", "--measure", "--output", tmp_path)

    rows = rows_of(tmp_path / "frontier.csv")
    points = [row for row in rows if row["point"] == "frontier"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "frontier",
        "frontier.csv",
        "frontier.json",
        "frontier.png",
    }
    assert {path.name for path in (tmp_path / "frontier").iterdir()} == FILES
    call("report", tmp_path / "frontier", "--output", tmp_path / "again.html")
    pages = [tmp_path / "again.html", tmp_path / "frontier" / "report.html"]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert len(points) == 3
    assert all(float(row["measured_kl_nats"]) >= 0 for row in rows)
    assert [float(row["weight_bytes"]) for row in points] == sorted(
        float(row["weight_bytes"]) for row in points
    )


def test_a_frontier_says_where_its_prediction_fails(tmp_path: Path) -> None:
    """On the terminal and in the file: no gradient reaches the first layer."""
    Path(tmp_path, "net.py").write_text(ROUNDING)
    options = ("--data", f"{tmp_path}/net.py:data", "--precisions", "w2,w4,w8", "--points", "3")

    found = call(
        *("frontier", "--model", f"{tmp_path}/net.py:Net", *options, "--sensitivity", "sketch"),
        *("--output", tmp_path / "out"),
    )

    said = " ".join(found.stdout.split())
    assert "no gradient reaches a" in said
    assert "warning: this frontier is only predicted" in said
    told = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert told["untrusted_layers"] == ["a"]
    assert not told["is_measured"]


@pytest.mark.usefixtures("small_demo")
def test_frontier_over_another_resource(tmp_path: Path) -> None:
    """``--resource`` chooses the axis; what is limited stays limited."""
    call(
        *("frontier", *LIMIT, *FAST, "--points", "3", "--resource", "effective_bits"),
        *("--output", tmp_path),
    )

    points = [row for row in rows_of(tmp_path / "frontier.csv") if row["point"] == "frontier"]
    bits = [float(row["effective_bits"]) for row in points]
    assert all(4 <= used <= 46 * 1024 * 8 / 71520 for used in bits)


@pytest.mark.usefixtures("small_demo")
def test_wishes_reach_the_search(tmp_path: Path) -> None:
    """Every option about layers has its effect."""
    call(
        *("search", "--limit", "weight_bytes=64KiB", "--precisions", "w4a8,w8a8", *FAST),
        *("--points", "2", "--output", tmp_path),
        *("--exclude", "stem.*", "--fix", "head=w6a8", "--allow", "*depthwise*=w8a8,w5a8"),
        *("--tie", "blocks.0.*", "--no-find-ties", "--no-fold", "--seed", "7"),
    )

    data = json.loads((tmp_path / "assignment.json").read_text())
    chosen = {layer["name"]: layer["precision"] for layer in data["layers"]}
    assert "stem.conv" not in chosen
    assert chosen["head"] == "w6a8"
    assert {p for name, p in chosen.items() if "depthwise" in name} <= {"w8a8", "w5a8"}
    assert data["ties"] == [["blocks.0.first.conv", "blocks.0.second.conv"]]
    assert data["folded_batch_norm"] == {}
    assert data["metadata"]["seed"] == 7


@pytest.mark.usefixtures("small_demo")
@pytest.mark.parametrize("style", ["file", "module"])
def test_the_command_of_the_readme(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own network, weights and data, a GPU, two limits: shaped as the issue has it."""
    package = tmp_path / "mypkg_of_cli_test"
    package.mkdir()
    (package / "mymod.py").write_text(USER_FILE, encoding="utf-8")
    names = {"file": f"{package}/mymod.py", "module": "mypkg_of_cli_test.mymod"}
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(3)
    shapes = {"0.weight": (8, 1, 3, 3), "0.bias": (8,), "3.weight": (32, 512), "3.bias": (32,)}
    shapes |= {"5.weight": (10, 32), "5.bias": (10,)}
    weights = {n: torch.randn(s, generator=generator) / 10 for n, s in shapes.items()}
    save_file(weights, tmp_path / "net.safetensors")

    call(
        *("search", "--model", f"{names[style]}:make_net", "--weights", "net.safetensors"),
        *("--data", f"{names[style]}:calibration", "--device", "nvidia-t4"),
        *("--limit", "latency=0.999x:w8a8", "--limit", "weight_bytes=14KiB"),
        *("--precisions", "w4a4,w4a8,w8a8", "--sensitivity", "sketch", "--solver", "ilp"),
        *("--output", "runs/t4"),
    )

    data = json.loads((tmp_path / "runs/t4/assignment.json").read_text())
    latency, size = data["metadata"]["budgets"]
    assert [layer["name"] for layer in data["layers"]] == ["0", "3", "5"]
    assert data["metadata"]["device"] == "nvidia-t4"
    assert latency["used"] <= latency["limit"]
    assert size["used"] <= size["limit"] == 14 * 1024
    # Weights are random, and so are inputs: rounding to nearest may be the better one.
    written = {path.name for path in (tmp_path / "runs/t4").iterdir()}
    assert written | {"assignment.safetensors"} == FILES

    printed = call(
        *("evaluate", "runs/t4/assignment.json", "--model", f"{names[style]}:make_net"),
        *("--weights", "net.safetensors", "--data", f"{names[style]}:calibration"),
    ).stdout
    assert json.loads(printed)["quantized"]["accuracy"] is None
    assert json.loads(printed)["quantized"]["num_examples"] == 64


@pytest.mark.usefixtures("small_demo")
def test_a_metric_of_ones_own(tmp_path: Path) -> None:
    """``--metric`` reaches estimate, measurement, files and ``evaluate``."""
    path = tmp_path / "mymod.py"
    path.write_text(USER_FILE, encoding="utf-8")
    mine = ("--model", f"{path}:make_net", "--data", f"{path}:calibration")

    shown = call(
        *("search", *mine, "--metric", "squared-error", "--limit", "weight_bytes=0.6x:w8"),
        *("--precisions", "w2,w4,w8", "--points", "2", "--measure", "--output", tmp_path / "run"),
    ).stdout

    record = json.loads((tmp_path / "run" / "assignment.json").read_text())["metadata"]
    networks, points = (rows_of(tmp_path / "run" / f"{n}.csv") for n in ("comparison", "frontier"))
    measured = float(networks[1]["measured_squared_error_squared_output"])
    assert "squared_output, proved bound" in shown
    assert (record["loss_unit"], record["measured_unit"]) == ("squared_output", "squared_output")
    assert record["measured_loss"] == pytest.approx(measured)
    assert all(float(p["measured_squared_error_squared_output"]) >= 0 for p in points)

    evaluated = ("evaluate", tmp_path / "run" / "assignment.json", *mine)
    printed = json.loads(call(*evaluated, "--metric", "squared-error").stdout)["quantized"]
    assert json.loads(call(*evaluated).stdout)["quantized"] == printed
    by_kl = json.loads(call(*evaluated, "--metric", "kl").stdout)["quantized"]
    assert set(by_kl) >= {"kl_nats"}
    assert printed["squared_error_squared_output"] > 0
    assert printed["accuracy"] is None


def test_an_unknown_metric_is_an_error(tmp_path: Path) -> None:
    """One line that lists those that there are, and exit code 2."""
    done = CliRunner().invoke(
        app, ["search", "--metric", "psnr", "--output", str(tmp_path / "run")]
    )

    assert done.exit_code == 2
    assert "no metric 'psnr' (there are: cosine, kl, outputs, " in done.stderr


def test_devices() -> None:
    """Every device is listed by the name that ``--device`` takes."""
    printed = call("devices").stdout

    assert all(name in printed for name in mpq.device_names())
    assert "estimated" in printed


def test_one_device() -> None:
    """``--show`` prints numbers with units and sources, for a shipped device."""
    printed = call("devices", "--show", "nvidia-t4").stdout

    assert "memory_bandwidth_bytes_per_s" in printed
    assert "3.2e+11" in printed
    assert "datasheet" in printed


@pytest.mark.usefixtures("small_demo")
def test_a_device_of_ones_own(tmp_path: Path, root: Path) -> None:
    """``--show`` and ``--device`` take a path to a profile."""
    source = root / "mpq/hardware_profiles/devices/cortex-m7.json"
    data = json.loads(source.read_text(encoding="utf-8"))
    path = tmp_path / "board.json"
    path.write_text(json.dumps({**data, "name": "my-board", "title": "My board"}))

    shown = call("devices", "--show", path).stdout
    call("search", *LIMIT, *FAST, "--points", "2", "--device", path, "--output", tmp_path / "run")

    record = json.loads((tmp_path / "run" / "assignment.json").read_text())["metadata"]
    assert "My board" in shown
    assert record["device"] == "my-board"


def test_estimators() -> None:
    """Every estimator is listed with its options and their defaults."""
    printed = call("estimators").stdout

    assert all(name in printed for name in mpq.ESTIMATORS.names())
    assert "num_probes=1" in printed


def test_roundings() -> None:
    """Every rounding is listed with its options and their defaults."""
    printed = call("roundings").stdout

    assert all(name in printed for name in mpq.ROUNDINGS.names())
    assert "damping=0.01" in printed


def test_tunings() -> None:
    """Every way of tuning is listed with its options and their defaults."""
    printed = call("tunings").stdout

    assert all(name in printed for name in mpq.TUNINGS.names())
    assert "epochs=8" in printed


def test_transforms() -> None:
    """Every transformation is listed with its options and their defaults."""
    printed = call("transforms").stdout

    assert all(name in printed for name in mpq.TRANSFORMS.names())
    assert "sweeps=20" in printed


@pytest.mark.usefixtures("small_demo")
def test_a_transform_reaches_the_run(tmp_path: Path) -> None:
    """``--transform`` is tried, and the result says what came of each."""
    folder = tmp_path / "run"
    names = "equalize,smooth:grid=1"
    call("search", *LIMIT, *FAST, "--points", "2", "--transform", names, "--output", folder)

    stated = json.loads((folder / "result.json").read_text())["provenance"]
    done = json.loads((folder / "assignment.json").read_text()).get("reparametrization")
    used = [] if done is None else done["transforms"]
    assert stated["transforms"] == ["equalize", "smooth:grid=1"]
    assert sorted([*used, *stated["transforms_unhelped"]]) == ["equalize", "smooth:grid=1"]


@pytest.mark.usefixtures("small_demo")
def test_a_rounding_reaches_the_run(tmp_path: Path) -> None:
    """``--rounding`` is kept with its codes, and the folder is exported without any data."""
    folder = tmp_path / "run"
    call("search", *LIMIT, *FAST, "--points", "2", "--rounding", "gptq", "--output", folder)

    stated = json.loads((folder / "assignment.json").read_text())["weights"]
    assert stated["rounding"] == "gptq"
    assert json.loads((folder / "result.json").read_text())["provenance"]["rounding"] == "gptq"
    call("quantize", folder, "--output", tmp_path / "q.safetensors")
    assert (tmp_path / "q.safetensors").exists()


def test_brackets_of_a_summary_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other packages write summaries too."""
    monkeypatch.setattr(Lagrangian, "summary", "exact [in float64]; 2**[bits]")

    assert "exact [in float64]; 2**[bits]" in call("solvers").stdout


def test_solvers() -> None:
    """Every solver is listed with its options and their defaults."""
    printed = call("solvers").stdout

    assert all(name in printed for name in mpq.SOLVERS.names())
    assert "num_trials=1000" in printed


@pytest.mark.parametrize(
    "command",
    ["search", "frontier", "evaluate", "quantize", "export", "devices", "estimators", "solvers"],
)
def test_every_command_has_help(command: str) -> None:
    """``--help`` of each command says what it does, and all commands are in the main help."""
    own, main = call(command, "--help").stdout, call("--help").stdout

    assert "Usage" in own
    assert "--debug" in own
    assert command in main


def processor_seconds_of_children() -> float:
    """Of all processes that ended so far: the same on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once() -> None:
    """``mpq --help`` in half a second of a processor (best of five), without importing torch."""
    code = (
        "import sys; sys.argv = ['mpq', '--help']; from mpq.cli.__main__ import app; "
        "app(standalone_mode=False); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    times = []
    for _ in range(5):
        start = processor_seconds_of_children()
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        times.append(processor_seconds_of_children() - start)

    assert found.stdout.splitlines()[-1] == "[]"
    assert "search" in found.stdout
    assert min(times) < 0.5


@pytest.mark.usefixtures("small_demo")
def test_quiet_prints_the_answer_only(tmp_path: Path) -> None:
    """No bars, no list of files; the tables are the same, and the files are written."""
    arguments = ("search", *FAST, *LIMIT, "--points", "2", "--output", tmp_path)
    loud, quiet = call(*arguments), call(*arguments, "--quiet")

    assert quiet.stderr == ""
    assert "wrote" in loud.stdout
    assert quiet.stdout == "".join(
        line for line in loud.stdout.splitlines(keepends=True) if not line.startswith("wrote ")
    )
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.usefixtures("small_demo")
def test_a_search_as_json_is_its_assignment(tmp_path: Path) -> None:
    """As the file has it, but for the run's mark, so that it can be piped; no bars in it."""
    found = call("search", *FAST, *LIMIT, "--points", "2", "--output", tmp_path, "--json")

    written = json.loads((tmp_path / "assignment.json").read_text(encoding="utf-8"))
    assert written.pop("run_id").startswith("mpq-run-")
    assert json.loads(found.stdout) == written


@pytest.mark.usefixtures("small_demo")
def test_a_frontier_as_json(tmp_path: Path) -> None:
    """What the file has beside its mark; a network of one's own needs no limit."""
    file = tmp_path / "net.py"
    file.write_text(USER_FILE)

    found = call(
        "frontier", "--model", f"{file}:make_net", "--data", f"{file}:calibration", *FAST,
        "--points", "3", "--output", tmp_path, "--json", "--quiet",
    )  # fmt: skip

    assert json.loads(found.stdout)["resource"] == "weight_bytes"
    written = json.loads((tmp_path / "frontier.json").read_text())
    assert written.pop("run_id").startswith("mpq-frontier-")
    assert json.loads(found.stdout) == written
    assert found.stderr == ""


def test_a_frontier_is_not_one_assignment(tmp_path: Path) -> None:
    """What makes sense of one assignment only is refused before any work."""
    for words in (("--refine", "1"), ("--minimize", "weight_bytes", "--max-loss", "1")):
        ran = CliRunner().invoke(app, ["frontier", *words, "--output", str(tmp_path)])

        assert ran.exit_code == 2
        assert "it takes neither --minimize nor --refine" in ran.stderr


def test_formats_lists_a_family_once() -> None:
    """As a table; as JSON every format has its own row."""
    printed = call("formats").stdout

    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert "we1m1," in rows["e{E}m{M}"]
    assert rows["int{N}"][1:3] == ["w2,", "w3,"]
    assert not {"int4", "e3m2", "e2m3"} & rows.keys()
    assert rows["{N}log2"][1:4] == ["a3log2,", "a4log2,", "a5log2"]
    assert "we3m2" in printed
    listed = {row["name"]: row for row in json.loads(call("formats", "--json").stdout)}
    assert list(listed) == list(NUMBER_FORMATS)
    assert listed["e3m2"]["written"] == ["we3m2", "wfp6_e3m2"]
    assert listed["e3m2"]["bits"] == 6


@pytest.mark.parametrize(
    "command", ["estimators", "solvers", "runtimes", "sections", "sources", "devices", "scales"]
)
def test_lists_as_json(command: str) -> None:
    """Every name that the table has, with what it is."""
    rows, table = json.loads(call(command, "--json").stdout), call(command).stdout

    assert len(rows) > 2
    assert all(row["name"][:8] in table for row in rows)


def test_one_device_as_json() -> None:
    """Every number with its source."""
    found = json.loads(call("devices", "--show", "cortex-m7", "--json").stdout)

    assert found["name"] == "cortex-m7"
    assert all(number["source"] for number in found["numbers"].values())


def test_applied_weights_as_json(run: tuple[Path, Result], tmp_path: Path) -> None:
    """The answer is the file."""
    folder, _ = run
    file = tmp_path / "net.safetensors"

    found = call("quantize", folder / "assignment.json", "--output", file, "--json")

    assert json.loads(found.stdout) == {"files": [str(file)]}
    assert file.is_file()


def test_the_version_and_the_exit_codes() -> None:
    """Without a command; the codes stand in the help."""
    assert call("--version").stdout == f"{mpq.__version__}\n"
    assert "3 no assignment meets the limits" in " ".join(call("--help").stdout.split())
