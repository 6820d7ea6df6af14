"""Ranges by step, from the task to the quantized network, and to what cannot hold them."""

import io
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import mpq
from mpq.backends import BACKENDS, Simulate, Text
from mpq.cli.console import print_result
from mpq.errors import DataError, InputError, PrecisionError
from mpq.network.examples import Calibration
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.steps import Steps
from mpq.sensitivity import ESTIMATORS
from mpq.tuning.student import Student
from mpq.workflows.setup import Prepared
from tests.denoisers import scaled, stepped_batches, with_table

DATA, FRESH = stepped_batches(96), stepped_batches(48, seed=1)
LIMIT = {"weight_bytes": "1x:w8a8"}


def task(clusters: int | None = 2, data: Any = DATA, **given: Any) -> mpq.Task:
    """Of the network whose inputs are larger at later steps."""
    asked = {"candidates": ["w8a8", "w8a4"], "metric": "squared-error", "rounding": "nearest"}
    steps = None if clusters is None else Steps("t", clusters)
    return mpq.Task(scaled(), data, **{**asked, "steps": steps, **given})


@pytest.fixture(scope="module")
def result() -> mpq.SearchResult:
    """Two clusters of steps."""
    return mpq.search(task(), LIMIT)


@pytest.fixture(scope="module")
def saved(result: mpq.SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files."""
    folder = tmp_path_factory.mktemp("steps")
    result.save(folder, result.frontier(num_points=2))
    return folder


def ranges(result: mpq.SearchResult) -> list[ActivationRange]:
    """Of every layer."""
    found = [layer.activation_range for layer in result.assignment.layers]
    return [each for each in found if each is not None]


def test_one_cluster_changes_nothing(result: mpq.SearchResult) -> None:
    """To the bit, in the assignment, the problem and what is measured."""
    with_steps, without = (mpq.search(task(count), LIMIT) for count in (1, None))

    assert with_steps.assignment.to_json() == without.assignment.to_json()
    assert with_steps.problem.to_json() == without.problem.to_json()
    assert with_steps.comparisons == without.comparisons
    assert result.assignment.to_json() != without.assignment.to_json()


def test_ranges_of_a_cluster_are_those_of_its_examples(result: mpq.SearchResult) -> None:
    """A search of these alone, that knows of no steps, finds the same."""
    clusters, prepared = result.assignment.steps, Prepared.of(task())
    assert clusters is not None
    rows = [
        {"x": b["x"][i : i + 1], "t": b["t"][i : i + 1]} for b in DATA for i in range(len(b["x"]))
    ]
    seen = Calibration(rows)
    held_out = {float(t) for b in prepared.held_out for t in b.kwargs["x"][:, 0]}
    alone = [
        [r for r in seen if clusters.of(float(r.kwargs["t"])) == t
         and float(r.kwargs["x"][0, 0]) not in held_out]
        for t in range(2)
    ]  # fmt: skip

    plain = [Prepared.of(task(None, part, held_out=FRESH)).quantizer.ranges.known for part in alone]

    assert clusters.borders == ((4 + 100) / 2,)
    for layer, own in zip(result.assignment.layers, ranges(result), strict=True):
        cell = (layer.name, layer.precision.activation)
        assert own.steps == tuple(known[cell] for known in plain)


def test_every_example_is_rounded_as_if_it_were_alone(result: mpq.SearchResult) -> None:
    """Of a batch with both clusters, by name and by place, and in a copy of the network."""
    network = mpq.quantize(scaled(), result.assignment)
    x, t = FRESH[0]["x"], FRESH[0]["t"]

    together = network(x, t)
    alone = torch.cat([network(a[None], t=b) for a, b in zip(x, t, strict=True)])
    early, late = (mpq.quantize(scaled(), result.assignment.of_cluster(c)) for c in range(2))
    by_cluster = torch.where((t > 52)[:, None], late(x, t), early(x, t))

    assert torch.allclose(together, alone, rtol=1e-12)
    assert torch.allclose(together, by_cluster, rtol=1e-12)
    assert not torch.allclose(together, scaled()(x, t), rtol=1e-4)


def test_own_ranges_lose_less(result: mpq.SearchResult) -> None:
    """Early steps have numbers a hundred times as small, which one range rounds to nothing."""
    one = mpq.search(task(1), LIMIT)

    losses = [
        mpq.evaluate(scaled(), found.assignment, FRESH)["quantized"].by_example
        for found in (one, result)
    ]

    early = torch.cat([b["t"] for b in FRESH]).numpy() < 52
    assert losses[1][early].mean() < 0.2 * losses[0][early].mean()
    assert losses[1].mean() <= losses[0].mean()


def test_saved_and_loaded_it_is_the_same(result: mpq.SearchResult, saved: Path) -> None:
    """Ranges, borders and what is told of them."""
    found = mpq.load(saved)

    assert found.assignment == result.assignment
    assert found.provenance == result.provenance
    assert mpq.Assignment.load(saved).steps == result.assignment.steps


def test_both_parts_of_a_split_cover_all_steps() -> None:
    """Also where examples come sorted by step, of which the last quarter are all late."""
    x, t = (torch.cat([b[name] for b in DATA]) for name in ("x", "t"))
    order = t.argsort(stable=True)
    prepared = Prepared.of(task(data=[{"x": x[order], "t": t[order]}]))

    plan = prepared.step_plan

    assert plan is not None
    assert plan.record.num_calibration == (48, 24)
    assert plan.record.num_held_out == (16, 8)


def test_a_cluster_without_held_out_examples_is_named() -> None:
    """What is measured would say nothing of it."""
    early = [{"x": torch.ones(4, 6, dtype=torch.float64), "t": 2}]

    with pytest.raises(DataError, match=r"no held-out example is in cluster 1 \(steps from 52\)"):
        mpq.search(task(held_out=early), LIMIT)


def test_steps_that_the_examples_leave_out_are_warned_of() -> None:
    """Where it is said which steps there are; else nobody knows."""
    steps = Steps("t", 2, within=(0, 103))

    with pytest.warns(UserWarning, match="leave out steps 4 to 100 of 0 to 103"):
        Prepared.of(replace(task(), steps=steps))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Prepared.of(replace(task(), steps=Steps("t", 2, within=(100, 103))))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"steps": Steps("time")}, "does not have the argument 'time'; it has x, t"),
        ({"to": "onnx-qdq"}, "a target holds one range"),
        ({"tune": "scales"}, "tune"),
        ({"recalibrate": True}, "recalibrate"),
        ({"rounding": "gptq", "sequential_rounding": True}, "sequential-rounding"),
        ({"workers": "ray"}, "workers"),
        ({"steps": Steps("t", 40)}, "40 clusters of steps need as many different steps"),
    ],
)
def test_what_cannot_be_had_with_steps_is_refused(given: dict[str, Any], match: str) -> None:
    """By its name, before anything is calibrated."""
    with pytest.raises(InputError, match=match):
        mpq.search(task(**given), LIMIT)


@pytest.mark.parametrize("backend", [x.name for x in BACKENDS if x not in (Simulate, Text)])
def test_every_tool_takes_one_cluster_at_a_time(
    backend: str, result: mpq.SearchResult, tmp_path: Path
) -> None:
    """None of them looks at a step: all clusters in one are refused, with what to do."""
    match = rf"^{backend} holds one range.*'first' has one for each of 2 .*--cluster 0 to 1"

    with pytest.raises(PrecisionError, match=match):
        mpq.export(result.assignment, tmp_path / "file", backend, scaled(), DATA)


def test_a_network_of_one_cluster_is_an_ordinary_one(result: mpq.SearchResult) -> None:
    """It has one range, that of the cluster, and is not told a step."""
    late = result.assignment.of_cluster(1)

    found = mpq.Assignment.from_json(late.to_json())

    assert found.steps is None
    assert [x.activation_range for x in found.layers] == [r.steps[1] for r in ranges(result)]
    with pytest.raises(InputError, match="no cluster 2 of steps: this assignment has 2"):
        result.assignment.of_cluster(2)
    with pytest.raises(InputError, match="no cluster 0 of steps: this assignment has 1"):
        late.of_cluster(0)


def test_layers_whose_rows_are_no_examples_have_one_range() -> None:
    """A table that all examples share says nothing of a step; they are told."""

    found = mpq.search(replace(task(), model=with_table()), LIMIT)

    assert found.provenance.steps is not None
    assert found.provenance.steps.shared == ("table",)
    own = {layer.name: layer.activation_range for layer in found.assignment.layers}
    assert own["table"] is not None
    assert own["scaled.first"] is not None
    assert (len(own["table"].steps), len(own["scaled.first"].steps)) == (0, 2)


ESTIMATED = [
    "auto", "sketch", "measured", "fisher", "first-order", "hessian-form", "layer-output",
    "output-gradient", "relevance", "layer-input-modification", "histogram-kl",
]  # fmt: skip


@pytest.mark.parametrize("name", ESTIMATED)
def test_estimates_do_not_depend_on_how_steps_are_batched(name: str) -> None:
    """Batches of both clusters say what batches of a single one say, of the same examples."""
    x, t = (torch.cat([b[k] for b in stepped_batches(24, size=24)]) for k in ("x", "t"))
    order = t.argsort(stable=True)
    x, t = x[order], t[order]
    prepared = Prepared.of(task(data=[{"x": x, "t": t}], held_out=FRESH, candidates=["w8a4"]))
    asked, estimator = prepared.asked, ESTIMATORS.build(name).for_examples(24)
    apart = Calibration([{"x": x[:16], "t": t[:16]}, {"x": x[16:], "t": t[16:]}])

    mixed = estimator.estimate(asked).table.values
    pure = estimator.estimate(replace(asked, data=apart.along(prepared.network.axes))).table.values

    assert np.allclose(mixed, pure, rtol=1e-6, atol=1e-9 * np.abs(pure).max())


def test_prices_are_sums_over_clusters(result: mpq.SearchResult, saved: Path) -> None:
    """Weighted by how many examples each has; saved and loaded to the bit, and told."""
    assert result.steps is not None
    console = Console(file=io.StringIO(), width=200)
    print_result(result, console)

    losses, loaded = result.step_losses, mpq.load(saved).step_losses

    assert losses is not None
    assert loaded is not None
    assert np.array_equal(losses, loaded)
    assert result.steps.examples.tolist() == [48 / 72, 24 / 72]
    total = (losses * result.steps.examples).sum(axis=2)
    assert np.allclose(total, result.problem.loss.values, rtol=1e-6, atol=0)
    assert "cluster 1 (steps from 52): " in console.file.getvalue()  # type: ignore[attr-defined]
    assert "of 33.3% of the examples: first" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_cluster_has_the_price_of_its_examples() -> None:
    """What is lost at its steps is what the sketch says of these examples alone, by its signs."""
    x, t = (torch.cat([b[k] for b in stepped_batches(24, size=24)]) for k in ("x", "t"))
    order = t.argsort(stable=True)
    data = [{"x": a, "t": b} for a, b in zip(x[order].split(9), t[order].split(9), strict=True)]
    asked = Prepared.of(task(data=data, held_out=FRESH)).asked
    sketch = ESTIMATORS.build("sketch:temperature=1,num_probes=2")

    found = sketch.estimate(asked)
    alone = [
        sketch.estimate(replace(asked, data=asked.data.between(*some))).table.values
        for some in ((0, 16), (16, 24))
    ]

    assert found.steps is not None
    by_cluster = found.steps.losses(found.table.values)
    assert np.allclose(by_cluster, np.stack(alone, axis=2), rtol=1e-4)


def test_formats_that_gain_nothing_have_one_range() -> None:
    """Noise is no reason for ranges of its own; without a trial it is not asked."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    t = torch.arange(64) % 8
    alike = [{"x": x / (1 + t[:, None]), "t": 1 + t}]

    tried, untried = (
        mpq.search(task(data=alike, steps=Steps("t", 2, trial=trial)), LIMIT)
        for trial in (True, False)
    )

    assert tried.provenance.steps is not None
    assert set(tried.provenance.steps.unhelped) == {"a8", "a4"}
    assert tried.assignment.steps is None
    assert not any(each.steps for each in ranges(tried))
    assert untried.assignment.steps is not None
    assert untried.assignment.steps.count == 2


def test_a_tuned_network_looks_at_the_step(result: mpq.SearchResult) -> None:
    """What is tuned computes as the quantized network does until it is moved."""
    tuning = mpq.TUNINGS.build("scales")
    x, t = FRESH[0]["x"], FRESH[0]["t"]

    student = Student.of(scaled(), result.assignment, tuning)

    assert torch.allclose(student.module(x, t), mpq.quantize(scaled(), result.assignment)(x, t))


def test_a_second_search_finds_what_the_first_one_kept(tmp_path: Path) -> None:
    """Whatever steps ran last: estimate and measurements are those of the same network."""
    first = mpq.search(task(cache=tmp_path), LIMIT)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    second = mpq.search(task(cache=tmp_path), LIMIT)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    assert second.step_losses is not None
    assert first.step_losses is not None
    assert np.array_equal(second.step_losses, first.step_losses)
