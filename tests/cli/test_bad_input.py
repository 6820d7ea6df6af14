"""What users get wrong, through the command line: one line that helps, and a non-zero exit."""

import json
from collections.abc import Callable
from pathlib import Path
from traceback import walk_tb

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from mpq import demo
from mpq.cli.__main__ import app
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

USER_FILE = """
import math
import torch
from torch import nn

torch.manual_seed(0)

def make_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)).eval()

def in_training():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.Linear(8, 4))

def with_nan_weight():
    net = make_net()
    net[1].weight.data[0, 0] = math.nan
    return net

def on_meta():
    return make_net().to("meta")

class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.net, self.factor = make_net(), factor

    def forward(self, x):
        return self.net(x) * self.factor

def with_nan_output():
    return Scaled(math.nan).eval()

def with_infinite_output():
    return Scaled(math.inf).eval()

class Boxes(Scaled):
    def forward(self, x):
        return {"boxes": self.net(x)}

def with_boxes():
    return Boxes(1.0).eval()

class Broken(Scaled):
    def forward(self, x):
        raise RuntimeError("the first line\\n  and a second line")

def broken():
    return Broken(1.0).eval()

def without_layers():
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(64)).eval()

def no_model():
    return {"weights": 1}

def calibration():
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        yield torch.randn(8, 1, 8, 8, generator=generator)

def empty():
    return iter([])

def no_examples():
    yield torch.zeros(0, 1, 8, 8)

def with_nan_input():
    yield torch.full((8, 1, 8, 8), math.nan)

def no_batches():
    return 3

def interrupted():
    yield from calibration()
    raise KeyboardInterrupt

def misshaped():
    yield torch.ones(8, 1, 7, 7)
"""
LIMIT = ("--limit", "weight_bytes=0.75x:w8a8", "--precisions", "w4a8,w8a8")


@pytest.fixture(scope="module")
def user_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with everything that a user can get wrong, and one network that is right."""
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(USER_FILE, encoding="utf-8")
    return path


Search = Callable[..., Result]


@pytest.fixture
def search(user_file: Path, tmp_path: Path) -> Search:
    """``mpq search`` on a network and data of the user's file, into ``tmp_path / run``."""

    def run(*options: str, model: str = "make_net", data: str = "calibration") -> Result:
        own = ("--model", f"{user_file}:{model}", "--data", f"{user_file}:{data}")
        limit = () if "--limit" in options else LIMIT
        output = () if "--output" in options else ("--output", str(tmp_path / "run"))
        return CliRunner().invoke(app, ["search", *own, *limit, *output, *options])

    return run


@pytest.fixture
def assignment_file(tmp_path: Path) -> Path:
    """The JSON of an assignment for the user's network."""
    chosen = Precision.parse("w8")
    shapes = {"1": (8, 64), "3": (4, 8)}
    layers = (AssignedLayer(name, "linear", shape, chosen) for name, shape in shapes.items())
    path = tmp_path / "assignment.json"
    path.write_text(Assignment(tuple(layers)).to_json(), encoding="utf-8")
    return path


def call(*arguments: str | Path) -> Result:
    """One command."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def the_error(result: Result, code: int = 2) -> str:
    """The one line of the error, after checking that there is one, and no traceback.

    It is the last one, but for what an interrupt says of how to go on.
    """
    lines = result.stderr.rstrip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    told = [line for line in lines if not line.startswith(("finished: ", "nothing is kept "))]
    assert errors == [told[-1]], result.stderr
    return errors[0]


def written(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--device", "nvidia-t5"), ("no device 'nvidia-t5'", "mean 'nvidia-t4'?", "cortex-m7")),
        (("--device", "none.json"), ("cannot read none.json", "No such file")),
        (("--precisions", "w4a8,w17a8"), ("'w17a8' is not a precision", "write w<bits>a<bits>")),
        (("--precisions", "w4a8,"), ("'' is not a precision",)),
        (("--precisions", ""), ("an empty value after --precisions",)),
        (("--data", ""), ("an empty value after --data",)),
        (("--output=",), ("an empty value after --output",)),
        (("--limit", " "), ("an empty value after --limit",)),
        (
            ("--fix", "1=w4a8", "--allow", "1=w8a8"),
            ("layer '1' is fixed at w4a8 (--fix)", "candidates w8a8 (--allow)"),
        ),
        (
            ("--precisions", "w3a8", "--device", "cortex-m7"),
            ("cortex-m7 runs no layer at w3a8",),
        ),
        (
            ("--sensitivity", "sketsh"),
            ("no sensitivity estimator 'sketsh'", "mean 'sketch'?", "measured"),
        ),
        (
            ("--sensitivity", "sketch:probes=2"),
            ("no option of sketch 'probes'", "mean 'num_probes'?"),
        ),
        (
            ("--sensitivity", "sketch:num_probes=two"),
            ("num_probes takes a value of type", "'two'"),
        ),
        (("--sensitivity", "sketch:num_probes=-1"), ("num_probes >= 1", "got -1")),
        (("--solver", "ilpp"), ("no solver 'ilpp'", "mean 'ilp'?", "evolutionary")),
        (("--solver", "ilp:time_limit=3"), ("no option of ilp", "mean 'time_limit_s'?")),
        (("--solver", "ilp:backend=GLPK"), ("no MILP backend 'GLPK'", "HiGHS")),
        (
            ("--include", "blocks*"),
            ("no layer for include (--include) 'blocks*'", "there are: 1, 3"),
        ),
        (("--exclude", "fc"), ("no layer for exclude (--exclude) 'fc'", "there are: 1, 3")),
        (("--fix", "fc=w8a8"), ("no layer for fix (--fix) 'fc'",)),
        (("--fix", "1"), ("--fix '1': write GLOB=PRECISION, such as 'head=w8a8'",)),
        (("--allow", "fc=w8a8"), ("no layer for allow (--allow) 'fc'",)),
        (("--tie", "fc"), ("no layer for tie (--tie) 'fc'",)),
        (("--exclude", "*"), ("no quantizable layer, or all are excluded",)),
        (("--limit", "weight_bytes"), ("'weight_bytes' is not a limit: write resource=amount",)),
        (("--limit", "weight_bytes=3ms"), ("unit 'ms' does not measure bytes; use one of B, KB",)),
        (("--limit", "weight_bytes=300"), ("300 has no unit", "use one of B, KB")),
        (("--limit", "latency=3ms"), ("latency needs a device", "`mpq devices`")),
        (("--limit", "size=3KB"), ("'size'", "weight_bytes")),
        (("--resource", "sizes"), ("'sizes'", "weight_bytes")),
        (("--points", "1"), ("at least 2 points; got 1",)),
        (("--weight-range", "best"), ("no range method 'best'", "minmax")),
        (("--batch-size", "0", "--device", "nvidia-t4"), ("batch size is at least 1; got 0",)),
        (("--eval-data", "none.py:held_out"), ("there is no file none.py",)),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_that_cannot_be(
    options: tuple[str, ...], expected: tuple[str, ...], search: Search, tmp_path: Path
) -> None:
    """The line says what was wrong, in the user's words, and what would be right."""
    result = search(*options)

    message = the_error(result)
    assert [words for words in expected if words not in message] == []
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ("--limit", "weight_bytes=10B"),
            ("infeasible", "weight_bytes: limit 10 bytes", "smallest reachable", "too much"),
        ),
        (
            ("--limit", "latency=1ns", "--limit", "weight_bytes=1MB", "--device", "nvidia-t4"),
            ("infeasible", "latency: limit 1e-09 seconds", "too much", "can be met alone"),
        ),
    ],
    ids=["one", "two"],
)
def test_limits_that_nothing_meets(
    options: tuple[str, ...], expected: tuple[str, ...], search: Search, tmp_path: Path
) -> None:
    """An exit code of their own, and by how much."""
    message = the_error(search(*options), code=3)

    assert [words for words in expected if words not in message] == []
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("with_nan_weight", ("parameter '1.weight' has values that are NaN or infinite",)),
        ("with_nan_output", ("the network's output has values that are NaN or infinite",)),
        ("with_infinite_output", ("the network's output has values that are NaN or infinite",)),
        ("with_boxes", ("returns a dict", "neither", "it has the outputs", "--outputs")),
        ("in_training", ("training mode", "dropout", "call model.eval() first")),
        ("on_meta", ("parameter '1.weight' has no values yet; load the weights first",)),
        ("without_layers", ("no quantizable layer",)),
        ("no_model", ("no_model gave a dict, not an nn.Module",)),
        ("no_such_function", ("mine.py has no 'no_such_function'",)),
    ],
)
def test_a_network_that_cannot_be_searched(
    model: str, expected: tuple[str, ...], search: Search, tmp_path: Path
) -> None:
    """The line names the parameter or the output, and what to do."""
    result = search(model=model)

    message = the_error(result)
    assert [words for words in expected if words not in message] == []
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("empty", "there are no examples: the data yielded no batch"),
        ("no_examples", "a batch has no example: its first input is (0, 1, 8, 8)"),
        ("with_nan_input", "an input has a value that is NaN or infinite"),
        ("no_batches", "yields batches; got int"),
        ("no_such_function", "mine.py has no 'no_such_function'"),
    ],
)
def test_data_that_cannot_be_used(data: str, expected: str, search: Search, tmp_path: Path) -> None:
    """Empty calibration and what else data can be, said in one line."""
    result = search(data=data)

    assert expected in the_error(result)
    assert written(tmp_path) == []


def test_held_out_data_that_is_empty_is_said_at_once(user_file: Path, tmp_path: Path) -> None:
    """Not after rounding and the estimate, and not as if it were the calibration data."""
    mine = ("--model", f"{user_file}:make_net", "--data", f"{user_file}:calibration")
    log = tmp_path / "log.jsonl"

    result = call("search", *mine, "--eval-data", f"{user_file}:empty", *LIMIT, "--log", log)

    assert "held-out data: there are no examples: the data yielded no batch" in the_error(result)
    assert '"estimate"' not in log.read_text(encoding="utf-8")


def test_a_model_without_data(user_file: Path, tmp_path: Path) -> None:
    """Somebody's own network needs somebody's own data."""
    model = f"{user_file}:make_net"

    result = call("search", "--model", model, *LIMIT, "--output", tmp_path / "run")

    assert "--model needs --data: a function that yields" in the_error(result)


def test_a_wrong_model_is_said_before_missing_data(user_file: Path, assignment_file: Path) -> None:
    """What is there is looked at first."""
    model = ("--model", f"{user_file}:make_nets")

    for command in (("search", *LIMIT), ("evaluate", assignment_file), ("profile",)):
        assert "mine.py has no 'make_nets'" in the_error(call(*command, *model))


def test_the_shape_of_distilled_examples_does_not_fit(tmp_path: Path) -> None:
    """Which option is wrong, with the network's own words."""
    file, source = tmp_path / "convolution.py", "batch-norm:shape=1x8x8,steps=1"
    file.write_text(
        "from torch import nn\n"
        "def make_net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()\n"
    )

    result = call("search", "--model", f"{file}:make_net", "--data", source, *LIMIT)

    message = the_error(result)
    assert "batch-norm: shape=1x8x8 does not fit the network" in message
    assert "to have 3 channels" in message


def test_a_model_without_limit(user_file: Path, tmp_path: Path) -> None:
    """Without a limit there is nothing to trade; the line shows what one looks like."""
    own = ("--model", f"{user_file}:make_net", "--data", f"{user_file}:calibration")

    result = call("search", *own, "--output", tmp_path / "run")

    assert "at least one limit, such as latency=0.6x:w8a8" in the_error(result)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--points", "1"), "at least 2 points; got 1"),
        (("--resource", "sizes"), "'sizes'"),
        (("--resource", "latency"), "latency needs a device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_frontier_options_are_checked_before_the_work(
    options: tuple[str, ...], expected: str, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake about the frontier is not found after hours of search, whose result is lost."""
    started: list[str] = []
    monkeypatch.setattr("mpq.sensitivity.OutputSketch.estimate", lambda *_: started.append("work"))

    result = search(*options)

    assert started == []
    assert expected in the_error(result)


def test_evaluating_ones_own_model_needs_data(user_file: Path, assignment_file: Path) -> None:
    """The demo's digits must not stand in for the data of somebody's own network."""
    result = call("evaluate", assignment_file, "--model", f"{user_file}:make_net")

    assert "--model needs --data" in the_error(result)


def test_the_users_own_error_is_one_line(search: Search, tmp_path: Path) -> None:
    """What the user's code raises is shown with its type, and how to see where it came from."""
    result = search(model="broken")

    message = the_error(result, code=1)
    assert message.startswith("error: RuntimeError: the first line")
    assert "--debug" in message
    assert written(tmp_path) == []


def test_debug_shows_the_traceback(search: Search) -> None:
    """With ``--debug`` the exception goes through, with the user's own lines in its traceback."""
    result = search("--debug", model="broken")

    assert isinstance(result.exception, RuntimeError)
    assert result.exc_info is not None
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(result.exc_info[2])]
    assert any(name.endswith("mine.py") for name in frames)


def test_debug_shows_our_own_errors_too(search: Search) -> None:
    """A wrong option with ``--debug`` is raised as the exception that it is."""
    result = search("--debug", "--device", "nvidia-t5")

    assert type(result.exception).__name__ == "UnknownNameError"


def test_examples_that_do_not_fit_the_network(search: Search) -> None:
    """Torch's own message about shapes is one line."""
    result = search(data="misshaped")

    assert "shapes cannot be multiplied" in the_error(result, code=1)


@pytest.mark.parametrize("is_old_run_there", [False, True])
def test_ctrl_c_leaves_no_half_written_file(
    is_old_run_there: bool, search: Search, tmp_path: Path
) -> None:
    """An interrupt in the middle: exit 130, no new file, an old run stays whole."""
    old = tmp_path / "run" / "assignment.json"
    if is_old_run_there:
        old.parent.mkdir()
        old.write_text("old", encoding="utf-8")

    result = search(data="interrupted")

    assert "interrupted" in the_error(result, code=130)
    assert written(tmp_path) == (["assignment.json"] if is_old_run_there else [])
    assert not is_old_run_there or old.read_text(encoding="utf-8") == "old"


def test_an_unwritable_folder_is_refused_before_the_work(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for hours to hear that the folder cannot be written."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    started: list[str] = []
    monkeypatch.setattr("mpq.cli.loading.load_model", lambda *_: started.append("model"))

    result = search("--output", str(tmp_path / "file" / "run"))

    assert "cannot write to the folder" in the_error(result)
    assert started == []
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_an_unwritable_folder_for_a_single_file(
    command: str, user_file: Path, assignment_file: Path, tmp_path: Path
) -> None:
    """``apply`` and ``export`` say it as ``search`` does."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    model = () if command == "export" else ("--model", f"{user_file}:make_net")

    result = call(command, assignment_file, *model, "--output", tmp_path / "file" / "out")

    assert "cannot write to the folder" in the_error(result)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("net.safetensors", b"garbage", "net.safetensors is not a safetensors file"),
        ("net.safetensors", b"", "net.safetensors is not a safetensors file"),
        ("net.pt", b"garbage", "net.pt cannot be read as tensors only"),
        ("net.pt", b"", "net.pt cannot be read as tensors only"),
        ("net.safetensors", None, "there is no weights file"),
    ],
    ids=["safetensors", "empty safetensors", "torch", "empty torch", "missing"],
)
def test_weights_that_are_not_what_they_say(
    name: str, content: bytes | None, expected: str, search: Search, tmp_path: Path
) -> None:
    """The line names the file and what was expected of it."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)

    result = search("--weights", str(path))

    assert expected in the_error(result)


def test_weights_of_another_network(search: Search, tmp_path: Path) -> None:
    """Missing and unexpected entries, in one line."""
    path = tmp_path / "net.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, path)

    result = search("--weights", str(path))

    message = the_error(result)
    assert "net.safetensors does not fit the network" in message
    assert "fc.weight" in message


def test_a_model_file_with_a_mistake(tmp_path: Path) -> None:
    """A syntax error in the user's file is one line that names it."""
    path = tmp_path / "mistaken.py"
    path.write_text("def make_net(:\n", encoding="utf-8")
    own = ("--model", f"{path}:make_net", "--data", f"{path}:calibration")

    result = call("search", *own, *LIMIT, "--output", tmp_path / "run")

    assert "SyntaxError" in the_error(result, code=1)
    assert "mistaken.py" in the_error(result, code=1)


@pytest.mark.parametrize("command", ["evaluate", "quantize", "export"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ("cannot read", "assignment.json", "No such file")),
        (b"\x89PNG\r\n\x1a\n", ("assignment.json",)),
        (b"bits: 4", ("assignment.json: not JSON",)),
        (b"{}", ("assignment.json: not a valid assignment",)),
        (b'{"schema_version": 4}', ("schema version 4", "reads version 3", "update mpq")),
    ],
    ids=["missing", "binary", "no json", "other json", "future"],
)
def test_an_assignment_that_is_not_what_it_says(
    command: str, content: bytes | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    """Each command that takes an assignment names the file and what is wrong with it."""
    path = tmp_path / "assignment.json"
    if content is not None:
        path.write_bytes(content)
    output = ("--output", tmp_path / "out") if command != "evaluate" else ()

    result = call(command, path, *output)

    message = the_error(result)
    assert [words for words in expected if words not in message] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"name: board", b"{}", b'{"schema_version": 9}'])
def test_a_profile_that_is_not_what_it_says(content: bytes, search: Search, tmp_path: Path) -> None:
    """``--device`` with a file that is no profile names the file."""
    path = tmp_path / "board.json"
    path.write_bytes(content)

    result = search("--device", str(path))

    assert str(path) in the_error(result)


@pytest.mark.parametrize("command", ["evaluate", "quantize"])
def test_an_assignment_of_another_network(
    command: str, assignment_file: Path, tmp_path: Path
) -> None:
    """The user's assignment on the demo network is refused, with the differences named."""
    output = ("--output", tmp_path / "out") if command == "quantize" else ()

    result = call(command, assignment_file, *output)

    message = the_error(result)
    assert "the assignment belongs to another network" in message
    assert "lacks '1 linear 8x64'" in message
    assert not (tmp_path / "out").exists()


def test_an_assignment_with_another_shape(user_file: Path, assignment_file: Path) -> None:
    """A layer of the same name with another shape is named with both shapes."""
    data = json.loads(assignment_file.read_text())
    other = Assignment.from_json(json.dumps(data))
    chosen = Precision.parse("w8")
    wider = AssignedLayer("1", "linear", (16, 64), chosen)
    assignment_file.write_text(Assignment((wider, *other.layers[1:])).to_json())
    own = ("--model", f"{user_file}:make_net", "--data", f"{user_file}:calibration")

    result = call("evaluate", assignment_file, *own)

    assert "has '1 linear 8x64' instead of '1 linear 16x64'" in the_error(result)


def test_an_unknown_export_format(assignment_file: Path) -> None:
    """A format that does not exist is answered with those that do."""
    result = call("export", assignment_file, "--to", "text:style=yaml")

    assert "no style of text 'yaml' (there are: bits, csv, json, markdown)" in the_error(result)


def test_an_unknown_device_to_show() -> None:
    """``devices --show`` suggests the closest name."""
    result = call("devices", "--show", "nvidia-t5")

    assert "did you mean 'nvidia-t4'?" in the_error(result)


def test_nan_in_the_weights_file(tmp_path: Path) -> None:
    """A checkpoint of a training that diverged is refused by the parameter's name."""
    path = tmp_path / "net.safetensors"
    state = {name: tensor.clone() for name, tensor in demo.make_net().state_dict().items()}
    state["head.weight"][3, 3] = float("nan")
    save_file(state, path)

    result = call("search", "--weights", path, "--output", tmp_path / "run")

    assert "parameter 'head.weight' has values that are NaN" in the_error(result)


@pytest.mark.parametrize(
    "command",
    [
        ("search", "--limit", "effective_bits=1"),
        ("frontier", "--limit", "effective_bits=1"),
        ("search", "--solver", "ilp:time_limit=3"),
        ("frontier", "--resource", "bytes"),
        ("compare", "--estimator", "sketsh"),
        ("profile", "--runtime", "onnx"),
    ],
)
def test_what_is_refused_late_leaves_no_folder(command: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing that looks like a run; folders that were there before stay, also empty ones."""
    (tmp_path / "mine").mkdir()
    output = tmp_path / "mine" / "runs" / "first"
    own = () if command[0] in ("compare", "profile") else ("--sensitivity", "weight-error")

    result = call(*command, *own, "--output", output)

    assert result.exit_code in (2, 3), result.output
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
