"""``profile`` from beginning to end: real runtimes on small networks, and one made up."""

import builtins
import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from mpq.backends.onnx import GraphTemplate, Subgraph
from mpq.cli.__main__ import app
from mpq.errors import InputError, MissingDependencyError, ModelError
from mpq.hardware_profiles.profiling import RUNTIMES, Program
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.timer import WARM_UP
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import quantized
from mpq.quantization.ranges import Ranges
from mpq.workflows.profile import profile
from mpq.workflows.task import Task
from tests.tasks import task_of

pytest.importorskip("onnx", reason="graphs are written with mpq[onnx]")
pytest.importorskip("onnxscript", reason="torch exports with mpq[onnx]")

QUICK: dict[str, Any] = {"rounds": 10, "max_interval": 1e6}


class Residual(nn.Module):
    """A stem, a grouped convolution beside a shortcut, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.middle = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.middle(x)).relu()
        found: Tensor = self.head(x.mean((2, 3)))
        return found


class Chain(nn.Module):
    """Ids ``[N, 6]`` through an embedding with positions, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(13, 32), nn.Parameter(torch.randn(6, 32))
        self.up, self.head = nn.Linear(32, 64), nn.Linear(64, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.positions
        found: Tensor = self.head(self.up(x).relu().mean(1))
        return found


def residual() -> nn.Module:
    """The same every time."""
    torch.manual_seed(0)
    return Residual().eval()


def chain() -> nn.Module:
    """The same every time."""
    torch.manual_seed(0)
    return Chain().eval()


def images() -> list[Tensor]:
    """Two batches of 4."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]


def ids() -> list[Tensor]:
    """Two batches of 4."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(13, (4, 6), generator=generator) for _ in range(2)]


@pytest.fixture(scope="module", autouse=True)
def _one_export_per_network() -> Iterator[None]:
    """An export takes seconds; the networks above are the same every time."""
    made: dict[tuple[str, int], GraphTemplate] = {}
    original = GraphTemplate.of

    def of(network: Network, data: Calibration, batch_size: int = 1) -> GraphTemplate:
        key = (network.fingerprint, batch_size)
        if key not in made:
            made[key] = original(network, data, batch_size)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphTemplate, "of", of)
        yield


@dataclass(frozen=True)
class Pretender:
    """Computes what the simulation does, plus ``shift`` at 7 bits; counts its runs."""

    name: ClassVar[str] = "pretender"
    summary: ClassVar[str] = "pretends"
    package: ClassVar[str] = "torch"
    default_precisions: ClassVar[tuple[str, ...]] = ("fp32", "w7a8")
    runs_pairs: ClassVar[bool] = True
    shift: float = 0.0
    wrong_layer: str = "up"
    stop_after: int | None = field(default=None, repr=False)
    num_threads: int = 1
    runs: list[int] = field(default_factory=list, repr=False, compare=False)

    def can_run(self, kind: str, precision: Precision) -> bool:
        return str(precision) in self.default_precisions

    def kernel(self, kind: str, precision: Precision) -> str:
        return str(precision)

    def subgraph(
        self, compiled: CompiledNetwork, subgraph: Subgraph, precisions: Mapping[str, Precision]
    ) -> Program:
        name = subgraph.layers[0]
        is_wrong = name == self.wrong_layer and str(precisions[name]) == "w7a8"

        def outputs(x: Any) -> Any:
            with quantized(compiled.network, precisions, compiled.quantizer), torch.no_grad():
                found = compiled.network.layer_module(name)(torch.from_numpy(x)).numpy()
            return found + (self.shift if is_wrong else 0.0)

        return Program(self._run, outputs)

    def network(self, compiled: CompiledNetwork, precisions: Mapping[str, Precision]) -> Program:
        return Program(self._run, lambda: np.zeros(1))

    def idle(self) -> Program:
        return Program(lambda: None, lambda: np.zeros(1))

    def _run(self) -> None:
        if self.stop_after is not None and len(self.runs) >= self.stop_after:
            raise KeyboardInterrupt
        self.runs.append(1)


def measured(runtime: str | Runtime = "onnxruntime", **options: Any) -> Any:
    """The chain's profile; few rounds, any noise accepted."""
    arguments = {"num_networks": 4, **QUICK, **options}
    task, own = task_of(chain(), ids(), arguments)
    return profile(task, runtime, **own)


@pytest.mark.parametrize(
    ("runtime", "package", "precisions"),
    [
        ("onnxruntime", "onnxruntime", ("fp32", "w7a8", "w4g32a8d")),
        ("openvino", "openvino", ("fp32", "w7a8", "w8g32a8d")),
        ("torchao", "torchao", ("fp32", "w8a32", "w8a8d")),
    ],
)
@pytest.mark.parametrize(("make", "data"), [(residual, images()), (chain, ids())])
def test_real_runtime_measures_a_network(
    runtime: str, package: str, precisions: tuple[str, ...], make: Any, data: Any
) -> None:
    """Every layer where it runs, neighbours, whole networks, and what they say of each other."""
    pytest.importorskip(package, reason=f"mpq[{package}] is not installed")
    model = make()
    state = copy.deepcopy(model.state_dict())
    chosen = RUNTIMES.build(runtime)

    found = profile(Task(model, data, candidates=precisions), runtime, num_networks=4, **QUICK)

    layers = Network.of(make(), data).layers
    assert found.signatures == tuple(layer.signature for layer in layers)
    assert tuple(map(str, found.latency.precisions)) == precisions
    expected = [[chosen.can_run(x.kind, Precision.parse(p)) for p in precisions] for x in layers]
    np.testing.assert_array_equal(np.isfinite(found.latency.values), expected)
    assert found.record["computed_wrongly"] == []
    # Less what an idle call takes, layers as small as these may take nothing on a busy machine.
    assert np.nanmin(found.latency.values) >= 0
    assert all(row["median_s"] > 0 for row in found.record["layers"])
    assert len(found.record["layers"]) == np.sum(expected)
    assert all(row["runs"] == 10 for row in found.record["layers"])
    assert len(found.record["networks"]) == 4 + int(np.all(expected, axis=0).sum())
    assert set(found.record["agreement"]) == {"sum_of_layers", "corrected"}
    assert bool(found.record["neighbours"]) == chosen.runs_pairs == bool(found.latency.pairs)
    # Where neighbours were measured by themselves, their time is not said to be in the constant.
    assert ("two that follow each other" in found.notes) == chosen.runs_pairs
    assert found.machine["runtime"] == repr(chosen)
    assert found.machine[package] != "not installed"
    json.loads(found.to_json(), parse_constant=pytest.fail)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m.training or m._forward_hooks for m in model.modules())
    assert torch.get_num_threads() == 1


class Named(nn.Module):
    """Two inputs that are no sum of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor, scaled: bool = False) -> Tensor:
        found: Tensor = self.first(x) - self.second(y)
        return found * 2 if scaled else found


@pytest.mark.parametrize("runtime", ["onnxruntime", "torchao"])
def test_inputs_by_name_may_come_in_any_order(runtime: str) -> None:
    """As a dictionary has them, with an option that is no tensor."""
    pytest.importorskip(runtime, reason=f"mpq[{runtime}] is not installed")
    torch.manual_seed(0)
    model, example = (
        Named().eval(),
        {"y": torch.randn(2, 4), "scaled": True, "x": torch.randn(2, 4)},
    )
    data, floats = Calibration([example]), Precision.parse("fp32")
    compiled = CompiledNetwork.of(Network.of(model, data), data, [floats], 2, Ranges())

    program = RUNTIMES.build(runtime).network(compiled, {"first": floats, "second": floats})

    found: Any = program.run()
    expected = model(**example).detach().numpy()
    np.testing.assert_allclose(np.asarray(found).reshape(2, 3), expected, atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torchao"])
def test_other_inputs_do_not_stay(runtime: str) -> None:
    """What is timed is a run on the example, whatever was asked of the program before."""
    pytest.importorskip(runtime, reason=f"mpq[{runtime}] is not installed")
    data, floats = Calibration(ids()), Precision.parse("fp32")
    compiled = CompiledNetwork.of(Network.of(chain(), data), data, [floats], 4, Ranges())
    alone = Subgraph.alone(compiled.template, "head")
    program = RUNTIMES.build(runtime).subgraph(compiled, alone, {"head": floats})

    def first(found: Any) -> Any:
        values = found.values() if hasattr(found, "values") else found
        return next(iter(values)).tolist()

    before: Any = first(program.run())
    program.outputs(*(np.zeros_like(x) for x in alone.examples))

    assert first(program.run()) == before


def test_sum_of_layers_is_what_was_measured() -> None:
    """Without whole networks: medians less the idle run, and what neighbours add."""
    found = measured(Pretender(), num_networks=0)

    idle = found.record["idle"]["median_s"]
    alone = {(row["layer"], row["precision"]): row["median_s"] for row in found.record["layers"]}
    expected = [
        [max(alone[name, str(p)] - idle, 0.0) for p in found.latency.precisions]
        for name in found.latency.layers
    ]
    np.testing.assert_allclose(found.latency.values, expected)
    assert {tuple(row["layers"]) for row in found.record["neighbours"]} == {
        ("embedding", "up"), ("up", "head"),
    }  # fmt: skip
    assert len(found.record["neighbours"]) == 2 * 4
    assert not {"networks", "correction", "agreement"} & set(found.record)
    assert all(abs(pair.values.mean()) < 1e-12 for pair in found.latency.pairs)


@pytest.mark.parametrize(("num_networks", "held_out"), [(1, 1), (5, 1), (6, 2)])
def test_a_third_of_the_mixed_networks_is_held_out(num_networks: int, held_out: int) -> None:
    """The uniform ones are not counted: the correction sees all of them."""
    found = measured(Pretender(), num_networks=num_networks)

    assert len(found.record["networks"]) == num_networks + 2
    assert {x["num_networks"] for x in found.record["agreement"].values()} == {held_out}


def test_one_precision_has_no_ranks() -> None:
    """All networks are the same one; the profile is JSON all the same."""
    found = measured(Pretender(), candidates=["fp32"], num_networks=3)

    assert found.record["agreement"]["corrected"]["spearman"] == 0
    json.loads(found.to_json(), parse_constant=pytest.fail)


def test_kernel_that_computes_something_else_is_left_out() -> None:
    """It is no cell of the table, and the record says by how much it is off."""
    found = measured(Pretender(shift=3.0))

    (wrong,) = found.record["computed_wrongly"]
    assert (wrong["layer"], wrong["precision"]) == ("up", "w7a8")
    assert wrong["error_in_standard_deviations"] > 1
    row = found.latency.layers.index("up")
    assert np.isnan(found.latency.values[row]).tolist() == [False, True]
    assert np.isnan(found.half_width.values[row]).tolist() == [False, True]
    assert all(x["precisions"]["up"] == "fp32" for x in found.record["networks"])


@pytest.mark.parametrize("shift", [float("nan"), float("inf"), float("-inf")])
def test_kernel_that_computes_no_numbers_is_left_out(shift: float) -> None:
    """Nan and infinity are not close to anything, and the record is JSON nevertheless."""
    found = measured(Pretender(shift=shift))

    assert [x["layer"] for x in found.record["computed_wrongly"]] == ["up"]
    json.loads(found.to_json(), parse_constant=pytest.fail)


def test_layer_that_runs_nowhere_is_refused() -> None:
    """Its only precision is computed wrongly."""
    with pytest.raises(ModelError, match="'up linear .* at none .*wrongly at w7a8; add fp32"):
        measured(Pretender(shift=3.0), candidates=["w7a8"])


def test_killed_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    """Finished rounds are not run again, and the file is the same measurement."""
    path, programs = tmp_path / "journal", 3 * 2 + 2 * 4
    with pytest.raises(KeyboardInterrupt):
        measured(Pretender(stop_after=programs * (WARM_UP + 6) + 2), journal=path, num_networks=0)
    lines = path.read_text().splitlines()
    again = Pretender()

    found = measured(again, journal=path, num_networks=0)

    assert len(lines) == 1 + 6
    assert len(again.runs) == programs * (WARM_UP + 4)
    assert path.read_text().splitlines()[1:7] == lines[1:]
    kept = [json.loads(line)["row"] for line in path.read_text().splitlines()[1:]]
    median = np.median([row["up at fp32"][0] for row in kept])
    (row,) = (x for x in found.record["layers"] if (x["layer"], x["precision"]) == ("up", "fp32"))
    assert row["median_s"] == pytest.approx(median)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"runtime": Pretender(shift=0.001)}, "runtime"),
        ({"candidates": ["fp32"]}, "precisions"),
        ({"seed": 1}, "seed"),
        ({"clock": "wall"}, "clock"),
    ],
)
def test_journal_of_another_measurement_is_refused(
    options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    """Times of one are not mixed with those of another."""
    path = tmp_path / "journal"
    measured(Pretender(), journal=path, num_networks=0)

    with pytest.raises(InputError, match=rf"another measurement \(other .*{what}"):
        measured(**{"runtime": Pretender(), "journal": path, "num_networks": 0, **options})


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torchao"])
def test_runtime_that_is_not_installed_is_named(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the line that installs it."""
    original = builtins.__import__

    def fail(name: str, *rest: Any, **names: Any) -> Any:
        if name.split(".")[0] == runtime:
            raise ImportError(f"No module named {runtime!r}")
        return original(name, *rest, **names)

    monkeypatch.setattr(builtins, "__import__", fail)

    extra = "onnx" if runtime == "onnxruntime" else runtime
    with pytest.raises(MissingDependencyError, match=rf"pip install 'mpq\[{extra}\]'"):
        measured(runtime, candidates=["fp32", "w8a32"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_networks": -1}, "whole networks is at least 0; got -1"),
        ({"rounds": 3}, "at least 10 rounds .* got 3"),
        ({"clock": "sun"}, "one of cpu, wall"),
        ({"runtime": "tensorrt"}, "no runtime 'tensorrt'"),
        ({"runtime": "onnxruntime:num_threads=0"}, "num_threads >= 1"),
        ({"runtime": "openvino:inference_precision=f16"}, "f32 or bf16"),
        ({"candidates": ["fp8"]}, "onnxruntime runs no layer at fp8"),
        ({"candidates": []}, "candidates is empty"),
        ({"exclude": ["nothing*"]}, r"no layer for exclude \(--exclude\) 'nothing"),
    ],
)
def test_impossible_question_is_refused(options: dict[str, Any], message: str) -> None:
    """Before anything is measured."""
    with pytest.raises(InputError, match=message):
        measured(**options)


def test_model_without_numbers_is_refused() -> None:
    """On ``meta`` there is nothing to run."""
    with pytest.raises(ModelError, match="no values yet; load the weights first"):
        profile(Task(chain().to("meta"), ids()), Pretender(), **QUICK)


def test_model_on_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on the processor is measured."""
    monkeypatch.setattr(Network, "device", torch.device("cuda", 1))

    with pytest.raises(ModelError, match="measured on the processor; the model is on cuda:1"):
        measured(Pretender())


def test_command_lists_the_runtimes() -> None:
    """With their options."""
    result = CliRunner().invoke(app, ["runtimes"])

    assert result.exit_code == 0
    for text in ("onnxruntime", "openvino", "torchao", "num_threads=1"):
        assert text in result.stdout
