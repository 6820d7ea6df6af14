"""What a search keeps on disk: another search finds it, and says the same."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import OutputError
from mpq.network.metric import SquaredError
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator
from mpq.sensitivity.output_sketch import OutputSketch, _Sketch
from mpq.sensitivity.weight_error import WeightError
from mpq.workflows.evaluate import Reference
from tests.workflows.networks import Net, batches

ROOT = Path(__file__).resolve().parents[2]
NUM_BATCHES = 3
"""Of four, that are not held out."""
ESTIMATORS = ("auto", "sketch", "fisher", "weight-error", "measured", "hessian-trace")


def images() -> list[Tensor]:
    return batches(4)


def task(folder: Path | None, **options: Any) -> mpq.Task:
    torch.manual_seed(0)
    given = {"candidates": ["w2a8", "w4a8", "w8a8"], "rounding": "gptq", **options}
    model = given.pop("model", None) or Net().eval()
    return mpq.Task(model, given.pop("data", images), cache=folder, **given)


def search(folder: Path | None, bits: float = 4, sensitivity: Any = "auto", **options: Any) -> Any:
    return mpq.search(task(folder, **options), {"effective_bits": bits}, sensitivity=sensitivity)


def told(result: Any) -> dict[str, Any]:
    """All that a run says, but its times."""
    found: dict[str, Any] = json.loads(result.to_json())
    found["solution"] = {k: x for k, x in found["solution"].items() if "seconds" not in k}
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is really estimated and measured."""
    found: list[str] = []
    estimate, compare = OutputSketch.estimate, Reference.compare

    def estimating(self: OutputSketch, on: Estimation) -> Sensitivity:
        found.append("estimate")
        return estimate(self, on)

    def comparing(self: Reference, module: nn.Module) -> Any:
        found.append("measure")
        return compare(self, module)

    monkeypatch.setattr(OutputSketch, "estimate", estimating)
    monkeypatch.setattr(Reference, "compare", comparing)
    return found


@pytest.mark.parametrize("sensitivity", ESTIMATORS)
def test_a_result_is_the_same_with_and_without(tmp_path: Path, sensitivity: str) -> None:
    """By every kind of estimator: the table, what pairs add, standard errors and the check."""
    expected = told(search(None, sensitivity=sensitivity))

    first, again = (told(search(tmp_path, sensitivity=sensitivity)) for _ in range(2))

    assert first == expected
    assert again == expected


def test_a_second_search_makes_nothing_twice(tmp_path: Path, made: list[str]) -> None:
    """At other bits the answer alone is new; without interactions it is another problem."""
    search(tmp_path)
    assert "estimate" in made
    made.clear()

    search(tmp_path)
    assert made == []
    other = search(tmp_path, bits=6)

    assert made in ([], ["measure"])
    assert told(other) == told(search(None, bits=6))


def test_measurements_are_found_among_other_candidates(tmp_path: Path) -> None:
    """A uniform precision is the same beside others; the estimate is of other candidates."""

    def kept(kind: str) -> int:
        return len(list(tmp_path.glob(f"*.{kind}")))

    asked: dict[str, Any] = {"bits": 6, "rounding": "nearest", "sensitivity": "weight-error"}
    search(tmp_path, **asked)
    before = kept("measurement")

    search(tmp_path, **asked, candidates=["w4a8", "w8a8"])

    assert kept("estimate") == 2
    assert kept("measurement") <= before + 1  # the answer


def test_every_example_is_kept(tmp_path: Path) -> None:
    """Comparisons beyond chance need them."""
    one, other = (search(tmp_path).comparison("w4a8").measured for _ in range(2))

    assert np.array_equal(one.by_example, other.by_example)
    assert one == other


def sharper(model: Any) -> None:
    model.head.weight.data *= 1.01


def other_bias(model: Any) -> None:
    model.hidden.bias.data += 0.1


OTHERS: dict[str, tuple[Mapping[str, Any], Callable[[Any], None]]] = {
    "estimator": ({"sensitivity": "fisher"}, lambda _: None),
    "options": ({"sensitivity": "sketch:num_probes=3"}, lambda _: None),
    "seed": ({"seed": 1}, lambda _: None),
    "rounding": ({"rounding": "nearest"}, lambda _: None),
    "data": ({"data": lambda: batches(5)[1:]}, lambda _: None),
    "held-out data": ({"held_out": lambda: batches(6)[5:]}, lambda _: None),
    "candidates": ({"candidates": ["w2a8", "w8a8"]}, lambda _: None),
    "ranges": ({"ranges": mpq.Ranges(activation="minmax")}, lambda _: None),
    "metric": ({"metric": "squared-error"}, lambda _: None),
    "weights": ({}, sharper),
    "bias": ({}, other_bias),
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_changes_an_answer_finds_none_of_the_others(tmp_path: Path, other: str) -> None:
    """Each beside what was kept of another question: what comes is what comes without."""
    search(tmp_path)
    options, change = OTHERS[other]

    def asked(folder: Path | None) -> Any:
        torch.manual_seed(0)
        model = Net().eval()
        change(model)
        return told(search(folder, model=model, **options))

    assert asked(tmp_path) == asked(None)


class Switched(Net):
    """The same weights and the same first batch; what is behind is another network."""

    def __init__(self, *, stops: bool = False, above: float = 1e9) -> None:
        super().__init__()
        self.stops, self.above = stops, above

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        half = found.detach() if self.stops else found
        return (0.5 * found + 0.5 * half) * (1 + (x[:, :1, 0, 0] > self.above))


@dataclass(frozen=True, eq=False)
class WeightedError(SquaredError):  # type: ignore[misc]
    """Classes count differently; a ``repr`` of 3,000 weights shows the first and the last three."""

    name: ClassVar[str] = "weighted"
    weight: Tensor | None = None

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        assert self.weight is not None
        root = self.weight[: outputs.shape[-1]].sqrt()
        return super().divergence(reference * root, outputs * root)


class HiddenError(SquaredError):  # type: ignore[misc]
    """A state that its ``repr`` does not tell."""

    name: ClassVar[str] = "hidden"

    def __init__(self, factor: float) -> None:
        object.__setattr__(self, "factor", factor)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        factor: float = self.__dict__["factor"]
        return factor * super().divergence(reference, outputs)


def switched(**options: Any) -> Callable[[], dict[str, Any]]:
    def made() -> dict[str, Any]:
        torch.manual_seed(0)
        return {"model": Switched(**options).eval()}

    return made


def weighted(fourth: float) -> Callable[[], dict[str, Any]]:
    weight = torch.ones(3000)
    weight[3] = fourth
    return lambda: {"metric": WeightedError(weight=weight)}


ALIKE: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "gradients": (switched(), switched(stops=True)),
    "later batches": (
        switched(),
        # Above all of the first batch, and below some of the others.
        switched(above=float(images()[0][:, 0, 0, 0].max())),
    ),
    "a long tensor of a metric": (weighted(1.0), weighted(50.0)),
    "state of a metric": (
        lambda: {"metric": HiddenError(1.0)},
        lambda: {"metric": HiddenError(9.0)},
    ),
}


@pytest.mark.parametrize("alike", ALIKE)
def test_what_looks_alike_is_told_apart(tmp_path: Path, alike: str) -> None:
    """The same weights, the same first answers, the same ``repr``; and it is found again itself."""
    one, other = ALIKE[alike]
    asked: dict[str, Any] = {"rounding": "nearest", "sensitivity": "sketch"}
    search(tmp_path, **asked, **one())
    kept = len(list(tmp_path.iterdir()))

    found, expected = (told(search(folder, **asked, **other())) for folder in (tmp_path, None))

    assert found == expected
    assert len(list(tmp_path.iterdir())) > kept
    both = len(list(tmp_path.iterdir()))
    search(tmp_path, **asked, **one())
    assert len(list(tmp_path.iterdir())) == both


@dataclass(frozen=True)
class Foreign(SensitivityEstimator):
    """Another package's, of which nobody knows what it depends on."""

    name: ClassVar[str] = "foreign"
    summary: ClassVar[str] = "a count of its calls"
    asked: ClassVar[list[int]] = []

    def estimate(self, on: Estimation) -> Sensitivity:
        self.asked.append(1)
        return WeightError().estimate(on)


def test_an_estimator_of_others_is_asked_every_time(tmp_path: Path) -> None:
    """Its state may be anywhere."""
    for _ in range(2):
        search(tmp_path, sensitivity=Foreign())

    assert len(Foreign.asked) == 2


@pytest.mark.parametrize("kind", ["estimate", "measurement"])
def test_damaged_files_are_made_anew(tmp_path: Path, kind: str) -> None:
    """With a word about it."""
    expected = told(search(tmp_path))
    damaged = next(iter(sorted(tmp_path.glob(f"*.{kind}"))))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5])

    with pytest.warns(UserWarning, match="is damaged: what was in it is made anew"):
        found = told(search(tmp_path))

    assert found == expected
    assert damaged.read_bytes() == whole


def test_a_comparison_of_estimators_takes_their_times(tmp_path: Path, made: list[str]) -> None:
    """What was kept would take none."""
    search(tmp_path, sensitivity="sketch")
    made.clear()

    mpq.compare(task(tmp_path), {"effective_bits": 4}, estimators=["sketch"], num_random=3)

    assert "estimate" in made


def test_a_task_that_keeps_leaves_the_model_as_it_came(tmp_path: Path) -> None:
    """Weights and mode."""
    asked = task(tmp_path)
    before = {name: tensor.clone() for name, tensor in asked.model.state_dict().items()}

    for _ in range(2):
        mpq.search(replace(asked, seed=3), {"effective_bits": 4}, sensitivity="sketch")

    after = asked.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not asked.model.training


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mpq.sensitivity.output_sketch import _Sketch
from mpq.sensitivity.passes import checkpoint
from tests.workflows.test_cache import search

torch.set_num_threads(int(sys.argv[2]))
checkpoint.INTERVAL_S = 0.0
passes, done = _Sketch.passes, []

def until(self, *asked):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(asked)
    return passes(self, *asked)

_Sketch.passes = until
search(Path(sys.argv[1]), sensitivity="auto")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_after_a_kill_the_sketch_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process, killed in its third batch: the first two are not run again."""
    expected = told(search(None))
    arguments = [str(tmp_path), str(torch.get_num_threads())]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.partial"))) == 1
    passes, run = _Sketch.passes, list[int]()

    def counting(self: _Sketch, *asked: Any) -> Any:
        run.append(1)
        return passes(self, *asked)

    monkeypatch.setattr(_Sketch, "passes", counting)

    found = told(search(tmp_path))

    assert found == expected
    assert len(run) == NUM_BATCHES - 2
    assert list(tmp_path.glob("*.partial")) == []


def test_a_folder_that_fills_up_costs_nothing_but_what_it_would_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found is told all the same, with a word about it."""
    expected = told(search(None))

    def full(*_: object) -> None:
        raise OutputError("cannot write to the folder: no space left on device")

    monkeypatch.setattr("mpq._support.cache.write_files", full)
    with pytest.warns(UserWarning, match="no space left on device: .* is not kept"):
        found = told(search(tmp_path))

    assert found == expected
