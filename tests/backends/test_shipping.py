"""An export is there when its runtime agreed with the simulation, and else nothing is there."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mpq
from mpq.backends import fresh
from mpq.backends.export_check import ExportCheck
from mpq.backends.runtime import Loaded
from mpq.backends.shipping import ship
from mpq.backends.target import LayerShape, Shipped, Target
from mpq.errors import MissingDependencyError, ModelError, OutputError, PrecisionError
from mpq.network.examples import Batch
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision

DATA = [torch.randn(16, 16, generator=torch.Generator().manual_seed(0))]
NAMES = ("0", "2")


def network() -> nn.Module:
    """Two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def assigned(precision: str = "w4a32") -> mpq.Assignment:
    """Every layer at one precision."""
    task = mpq.Task(network(), DATA, DATA, candidates=[precision])
    return mpq.search(task, {"effective_bits": 33}, sensitivity="weight-error").assignment


@dataclass(frozen=True)
class Toy(Target):
    """Weights as they are decoded, in one file, one byte a code; may be made to go wrong."""

    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "a file for tests"
    extra: ClassVar[str] = "toy"
    packages: ClassVar[tuple[str, ...]] = ()
    readers: ClassVar[str] = "this test"
    holds: ClassVar[str] = "w2 to w8"
    candidates: ClassVar[tuple[str, ...]] = ("w4", "w8")

    fault: str = ""

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        return "w3 is refused" if precision.weight.number.bits == 3 else ""

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        found = {x.name: shipped.codes(x).numbers() for x in shipped.quantized}
        if self.fault == "weight":
            found["2"][1, 3] += 0.01
        if self.fault == "layer":
            del found["2"]
        biases = dict(shipped.module.named_parameters())
        found |= {f"{name}.bias": biases[f"{name}.bias"] for name in NAMES}
        if self.fault == "size":
            found["more"] = torch.zeros(100_000)
        save_file({name: t.detach().clone() for name, t in found.items()}, folder / "x.safetensors")

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.stored_kind``."""
        return "4 bits"

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``."""
        return 32 * int(np.prod(layer.weight_shape))

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        if self.fault == "missing":
            raise MissingDependencyError("toy is not installed: pip install 'mpq[toy]'")
        return Ran(load_file(folder / "x.safetensors"), self.fault)

    def load_otherwise(self, folder: Path) -> Mapping[str, Callable[[], Loaded]]:
        """See ``Target.load_otherwise``: one that agrees, one that is not there, one of a shape."""
        if self.fault != "settings":
            return {}
        ran = partial(Ran, load_file(folder / "x.safetensors"))

        def refused() -> Loaded:
            raise RuntimeError("no kernel\nand a stack of calls")

        return {"plainly": partial(ran, ""), "faster": refused, "cut": partial(ran, "shape")}


@dataclass(frozen=True)
class Ran:
    """The toy's runtime."""

    tensors: Mapping[str, Tensor]
    fault: str
    versions: Mapping[str, str] = field(default_factory=lambda: {"toy": "1.0"})

    @property
    def weights(self) -> dict[str, Tensor]:
        """Without biases."""
        return {name: self.tensors[name] for name in NAMES if name in self.tensors}

    @property
    def kinds(self) -> dict[str, str]:
        """All alike, or one of another kind."""
        told = {"float": "matrix of floats", "wide": "matrix of 14 bits", "untold": ""}
        return {"0": "matrix of 4 bits", "2": told.get(self.fault, "matrix of 4 bits")}

    def run(self, batch: Batch) -> Tensor:
        """Two products and a ReLU."""
        x = batch.args[0]
        first = torch.relu(x @ self.tensors["0"].t() + self.tensors["0.bias"])
        second = self.tensors.get("2", torch.zeros(4, 32))
        found = first @ second.t() + self.tensors["2.bias"]
        wrong = {"outputs": found * 1.01, "nan": found * torch.nan, "shape": found[:, :2]}
        return wrong.get(self.fault, found)


@pytest.fixture
def shipped(same_process: None, tmp_path: Path) -> Any:
    """Ships with a fault to ``tmp_path / "made"``."""

    def run(fault: str = "", assignment: mpq.Assignment | None = None) -> ExportCheck:
        found = assignment or assigned()
        return ship(Toy(fault), "toy", found, tmp_path / "made", network(), DATA)

    return run


def test_what_agrees_is_there_with_its_figures(shipped: Any, tmp_path: Path) -> None:
    """``export.json`` states the comparison, sizes, speed and versions."""
    check = shipped()

    assert check.was_searched_for
    told = json.loads((tmp_path / "made" / "export.json").read_text())
    assert sorted(file.name for file in (tmp_path / "made").iterdir()) == [
        "export.json", "x.safetensors",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]
    assert (told["num_layers"], told["num_examples"], told["versions"]["toy"]) == (2, 16, "1.0")
    assert told["max_difference"] == check.max_difference < 1e-5
    assert told["examples_per_second"] == 32
    assert told["kinds"] == {"matrix of 4 bits": 2}
    expected = 4 * (16 * 32 + 32 + 32 * 4 + 4)
    assert told["predicted_bytes"] == expected
    assert expected <= told["file_bytes"] <= expected + 1000


def test_held_out_examples_are_what_is_run(
    same_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Differences and divergences are theirs; ranges are of the calibration examples."""
    held_out = [torch.randn(5, 16, generator=torch.Generator().manual_seed(1))]
    given: list[Shipped] = []
    write = Toy.write

    def seen(target: Toy, shipped: Shipped, folder: Path) -> None:
        given.append(shipped)
        write(target, shipped, folder)

    monkeypatch.setattr(Toy, "write", seen)

    check = ship(Toy(), "toy", assigned(), tmp_path / "made", network(), DATA, held_out)

    model = network()
    with torch.no_grad():
        expected, found = model(held_out[0]), mpq.quantize(model, assigned())(held_out[0])
    divergence = torch.nn.functional.kl_div(
        found.double().log_softmax(-1),
        expected.double().log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    assert check.kl_of_simulation_nats == pytest.approx(float(divergence), rel=1e-4)
    assert (check.num_examples, check.examples_are_held_out) == (5, True)
    assert "outputs of 5 held-out examples" in check.verdict
    assert json.loads((tmp_path / "made" / "export.json").read_text())["examples_are_held_out"]
    (one,) = given
    assert one.calibration is not None
    assert torch.equal(next(iter(one.calibration)).args[0], DATA[0])
    assert torch.equal(one.examples[0].args[0], held_out[0])


def test_calibration_examples_are_said_to_be_that(shipped: Any, tmp_path: Path) -> None:
    """Where nothing is held out, nobody takes the figures for those of other examples."""
    check = shipped()

    assert "outputs of 16 calibration examples" in check.verdict
    assert not json.loads((tmp_path / "made" / "export.json").read_text())["examples_are_held_out"]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("weight", ModelError, "the weight of layer '2' at w4a32 is decoded as another one"),
        ("layer", ModelError, "found no quantized weight of layer '2'"),
        ("outputs", ModelError, "outputs differ from the simulation's"),
        ("nan", ModelError, "outputs differ from the simulation's by nan"),
        ("shape", ModelError, r"outputs are \(16, 2\), the simulation's \(16, 4\)"),
        ("size", ModelError, "the files have 40.... bytes where 2704 were promised"),
        ("float", ModelError, "'2' at w4a32 is held as matrix of floats, and 4 bits was promised"),
        ("wide", ModelError, "'2' at w4a32 is held as matrix of 14 bits, and 4 bits was promised"),
        ("untold", ModelError, "'2' at w4a32 is held as what its runtime does not tell"),
        ("missing", MissingDependencyError, r"pip install 'mpq\[toy\]'"),
    ],
)
def test_what_goes_wrong_leaves_nothing(
    shipped: Any, tmp_path: Path, fault: str, error: type[Exception], message: str
) -> None:
    """Neither the folder nor a part of it."""
    with pytest.raises(error, match=message):
        shipped(fault)

    assert not list(tmp_path.iterdir())


def test_other_settings_that_fail_are_warnings(shipped: Any, tmp_path: Path) -> None:
    """The settings that are exact were run and agree: what others do is told, and fails nothing."""
    check = shipped("settings")

    told = json.loads((tmp_path / "made" / "export.json").read_text())
    assert told["max_differences_otherwise"] == {"plainly": check.max_difference}
    faster, cut = told["warnings"]
    assert faster == "faster could not be compared: RuntimeError: no kernel"
    assert cut.startswith("cut could not be compared: toy: its runtime's outputs are (16, 2)")
    assert f"warning: {faster}" in check.verdict


def test_a_runtime_that_dies_under_other_settings_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said before is compared; without an answer its end is an error."""
    fault = ModelError("toy: its runtime ended with -11")

    def dies(*_: object) -> None:
        raise fault

    monkeypatch.setattr(fresh, "_ask", dies)
    with pytest.raises(ModelError, match="ended with -11"):
        fresh.run_fresh(Toy(), "toy", tmp_path, [], tmp_path)
    answer = {"outputs": [], "seconds": 1.0, "versions": {}, "kinds": {}, "more": []}
    torch.save(answer, tmp_path / fresh.ANSWER)

    ran = fresh.run_fresh(Toy(), "toy", tmp_path, [], tmp_path)

    assert ran.others == {"other settings": str(fault)}


def test_a_precision_that_is_not_held_is_refused_before_anything_is_written(
    shipped: Any, tmp_path: Path
) -> None:
    """With the layer's name and the reason."""
    with pytest.raises(PrecisionError, match="layer '0' at w3a32: w3 is refused"):
        shipped(assignment=assigned("w3a32"))

    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(shipped: Any, tmp_path: Path) -> None:
    """A folder with something in it is refused; an empty one is taken."""
    (tmp_path / "made").mkdir()
    shipped()

    with pytest.raises(OutputError, match="is there already"):
        shipped()


def test_a_refused_export_removes_what_a_killed_one_left(shipped: Any, tmp_path: Path) -> None:
    """One that was killed when its folder was there already, so that nobody exports there again."""
    shipped()
    dead = tmp_path / ".mpq-export-deaddead"
    (dead / "exchange").mkdir(parents=True)

    with pytest.raises(OutputError, match="is there already"):
        shipped()

    assert not dead.exists()


def test_of_two_exports_at_once_the_second_is_refused(
    shipped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not land inside of the first one's folder, which appeared meanwhile."""
    first, made = Path.rename, tmp_path / "made"

    def appears(path: Path, to: Path) -> Path:
        made.mkdir()
        (made / "export.json").write_text("of the first one")
        return first(path, to)

    monkeypatch.setattr(Path, "rename", appears)

    with pytest.raises(OutputError, match="is there already"):
        shipped()

    assert [file.name for file in made.iterdir()] == ["export.json"]
    assert list(tmp_path.iterdir()) == [made]


def test_an_assignment_of_a_search_for_elsewhere_is_said_to_be_one(shipped: Any) -> None:
    """Its numbers are those of the target now, not those that were measured."""
    other = replace(assigned(), numerics=Numerics(scale="fp16"))

    assert not shipped(assignment=other).was_searched_for


KILLED = """
import sys, time
from pathlib import Path
from mpq._support.files import staging
with staging(Path(sys.argv[1]), "export") as place:
    (place / "made").mkdir()
    (place / "made" / "model.safetensors").write_bytes(b"half of it")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_export_left_is_removed_by_the_next(shipped: Any, tmp_path: Path) -> None:
    """Nothing looks finished; of an export that is still at work nothing is touched."""
    ours = (tmp_path / ".mpq-export-of-mine", tmp_path / "other")
    for folder in ours:
        folder.mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as dead,
        subprocess.Popen(command, stdout=subprocess.PIPE) as alive,
    ):
        for process in (dead, alive):
            assert process.stdout is not None
            process.stdout.readline()
        assert len(list(tmp_path.glob(".mpq-export-*"))) == 3
        dead.kill()
        dead.wait()
        assert not (tmp_path / "made").exists()

        shipped()

        left = set(tmp_path.iterdir()) - {*ours, tmp_path / "made"}
        alive.kill()
    assert len(left) == 1
    assert (tmp_path / "made" / "export.json").is_file()


CHILD = """
import os, sys, time
import mpq.backends.__main__ as child

parent = int(sys.argv[1])
print(os.getpid(), flush=True)
while {dies_first} and os.getppid() == parent:
    time.sleep(0.01)
child.target_of = lambda _: time.sleep(600)
child.main(sys.argv[1], "toy", "folder", "exchange")
"""


@pytest.mark.parametrize("dies_first", [False, True])
def test_a_child_ends_with_its_parent(dies_first: bool) -> None:
    """Killed, an export leaves no runtime at work, also where that was still importing."""
    script = (
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid())])\n"
    )
    command = [sys.executable, "-c", script, CHILD.format(dies_first=dies_first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()

    for _ in range(200):
        # Ended, it is gone, or waits as a zombie for a parent that reaps it.
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    os.kill(child, 9)
    raise AssertionError("the child is still there")


def test_a_child_is_told_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parent, as a child that asks for itself may ask too late."""
    commands: list[list[str]] = []

    def runs(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        commands.append(command)
        return subprocess.CompletedProcess(command, 3, "", "enough")

    monkeypatch.setattr(subprocess, "run", runs)
    with pytest.raises(ModelError, match="its runtime ended with 3: enough"):
        fresh.run_fresh(Toy(), "toy", tmp_path, [], tmp_path)

    (command,) = commands
    assert command[3:] == [str(os.getpid()), "toy", str(tmp_path), str(tmp_path)]


def test_negative_scales_are_refused_by_a_target_that_reads_none(tmp_path: Path) -> None:
    """Searched without it; a search for it has none, and is exported."""
    model = network()
    task = mpq.Task(model, DATA, DATA, candidates=["w3a8"], rounding="coordinate-descent")
    free, bound = (
        mpq.search(asked, {"effective_bits": 33}, sensitivity="weight-error").assignment
        for asked in (task, replace(task, to="c"))
    )

    with pytest.raises(PrecisionError, match="c reads positive scales, and .* auto:signs"):
        mpq.export(free, tmp_path / "out", "c", model, DATA)

    assert not list(tmp_path.iterdir())
    assert free.weights is not None
    assert any((weight.scale < 0).any() for weight in free.weights.by_layer.values())
    assert bound.weights is not None
    assert all((weight.scale > 0).all() for weight in bound.weights.by_layer.values())
    mpq.export(bound, tmp_path / "out", "c", model, DATA)
