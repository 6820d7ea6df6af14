"""What holds for every network, on random ones of all kinds of layers, inputs and outputs."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mpq
from mpq.network.layer import Layer
from mpq.network.network import Network
from mpq.sensitivity.estimation import Estimation
from mpq.workflows.setup import Prepared
from tests.generated.networks import Recipe, recipes
from tests.generated.parts import WIDTH
from tests.generated.snapshot import Snapshot
from tests.generated.steps import LAYERS

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated"),
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
]
CANDIDATES = ("w2", "w4a8", "w8a8")
Found = TypeVar("Found")
COMPUTED = {name for name in LAYERS if "_norm" in name or name in ("pruned", "orthogonal")}
COMPUTED |= {name for name in LAYERS if name.startswith("computed")}
some, few = settings(max_examples=25), settings(max_examples=10)  # a search takes a second


def built(recipe: Recipe) -> tuple[nn.Module, list[Any]]:
    """The network and its data, if it runs at all: some kernels have no bfloat16."""
    model, data = recipe.build()
    try:
        # Twice, as a network may write into itself, or into its inputs.
        for batch in data * 2:
            run(model, batch)
    except (RuntimeError, NotImplementedError):
        assume(False)
    return model, data


def run(model: nn.Module, batch: Any) -> Any:
    """The network's own answer."""
    inputs = batch[0] if isinstance(batch, tuple) else batch
    with torch.no_grad():
        if isinstance(inputs, dict):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def answered(ask: Callable[[], Found]) -> Found | None:
    """What was asked for, or nothing where a sentence refuses it; any other error is a failure."""
    try:
        return ask()
    except mpq.MpqError as error:
        sentence = str(error)
    event(f"refused: {sentence[:60]}")
    assert len(sentence.split()) > 5, sentence
    return None


def task_of(model: nn.Module, data: list[Any], recipe: Recipe, **options: Any) -> mpq.Task:
    """All examples on either side, as there are few."""
    # Searching the best range of every weight would take most of the time.
    ranges = mpq.Ranges(weight="minmax", activation="minmax")
    given_ = {"candidates": CANDIDATES, "metric": recipe.metric, "ranges": ranges, **options}
    return mpq.Task(model, data, data, **given_)


def tensors_of(output: Any) -> list[Tensor]:
    """Every tensor of an answer, in order."""
    if isinstance(output, Tensor):
        return [output]
    values: Any = output
    if not isinstance(output, tuple):
        values = (output if isinstance(output, dict) else vars(output)).values()
    return [tensor for value in values for tensor in tensors_of(value)]


@given(recipe=recipes())
@some
def test_covered_and_named_are_everything(recipe: Recipe) -> None:
    """In numbers and in bytes, by a count of our own over parameters and buffers."""
    model, data = built(recipe)

    found = answered(
        lambda: Network.of(model, data, metric=task_of(model, data, recipe).output_metric)
    )

    if found is None:
        return
    coverage = found.coverage
    assert coverage is not None
    every = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    stored = {id(t): t for t in model.state_dict(keep_vars=True).values()}.values()
    outside = sum(item.num_elements for item in coverage.outside)
    outside_bytes = sum(item.num_bytes for item in coverage.outside if item.is_stored)
    assert coverage.num_elements == sum(t.numel() for t in every)
    assert coverage.covered_elements + outside == coverage.num_elements
    assert coverage.num_bytes == sum(t.numel() * t.element_size() for t in stored)
    assert coverage.covered_bytes + outside_bytes == coverage.num_bytes


@given(recipe=recipes())
@some
def test_finding_layers_leaves_all_as_found(recipe: Recipe) -> None:
    """Parameters, buffers, gradients, modes, hooks, attributes, data and random states."""
    model, data = built(recipe)
    before = Snapshot.of(model, *data)

    answered(lambda: mpq.find_layers(model, data))

    assert before.changes(Snapshot.of(model, *data)) == []


@given(recipe=recipes(), name=st.sampled_from(mpq.ESTIMATORS.names()))
@some
def test_an_estimator_leaves_all_as_found_and_repeats_itself(recipe: Recipe, name: str) -> None:
    """Twice with one seed it says the same, and every number is a loss."""
    model, data = built(recipe)
    before = Snapshot.of(model, *data)
    prepared = answered(lambda: Prepared.of(task_of(model, data, recipe)))
    if prepared is None:
        return
    estimator = mpq.ESTIMATORS.build(name, 3)

    def estimate() -> np.ndarray[Any, Any]:
        on = Estimation(
            prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates
        )
        return estimator.estimate(on).table.values

    first = answered(estimate)
    torch.rand(1), np.random.rand()
    between = Snapshot.of(model, *data)
    second = answered(estimate)

    assert set(before.changes(between)) <= {"torch", "numpy"}
    assert between.changes(Snapshot.of(model, *data)) == []
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        np.testing.assert_array_equal(first, second)
        assert np.isfinite(first).all()
        assert (first >= 0).all()


@given(recipe=recipes(), share=st.sampled_from(("0.6x:w8a8", "1x:w4a8")))
@few
def test_a_search_leaves_all_as_found(recipe: Recipe, share: str) -> None:
    """As do quantizing and saving what was found; the file says the same again."""
    model, data = built(recipe)
    before = Snapshot.of(model, *data)

    result = answered(lambda: mpq.search(task_of(model, data, recipe), {"weight_bytes": share}))
    if result is not None:
        quantized = mpq.quantize(model, result.assignment)
        run(quantized, data[0])
        with TemporaryDirectory() as folder:
            result.assignment.save(folder)
            assert mpq.Assignment.load(folder) == result.assignment

    assert before.changes(Snapshot.of(model, *data)) == []


@given(recipe=recipes())
@some
def test_original_precision_changes_no_output(recipe: Recipe) -> None:
    """Every layer at fp32 is the network itself, in all that it returns."""
    model, data = built(recipe)
    expected = [run(model, batch) for batch in data]
    task = task_of(model, data, recipe, candidates=["fp32"])
    result = answered(lambda: mpq.search(task, {"weight_bytes": "1x:fp32"}))
    if result is None:
        return

    quantized = mpq.quantize(model, result.assignment)

    for batch, answer in zip(data, expected, strict=True):
        for was, now in zip(tensors_of(answer), tensors_of(run(quantized, batch)), strict=True):
            assert was.dtype == now.dtype
            tolerance = 1e-5 if was.dtype != torch.bfloat16 else 0.05
            apart = (was.double() - now.double()).abs().max()
            assert apart <= tolerance * max(1.0, float(was.double().abs().max()))


@given(recipe=recipes())
@few
def test_bytes_of_an_answer_are_those_of_its_layers_and_of_what_is_named(recipe: Recipe) -> None:
    """Codes and a scale per channel, each parameter once; and weights hold no more numbers."""
    model, data = built(recipe)
    task = task_of(model, data, recipe)
    result = answered(lambda: mpq.search(task, {"weight_bytes": "0.7x:w8a8"}))
    if result is None:
        return
    chosen = {layer.name: layer.precision for layer in result.assignment.layers}
    coverage, owners = result.coverage, [x for x in result.layers if x.weight_of is None]
    assert coverage is not None

    quantized = mpq.quantize(model, result.assignment)

    expected = coverage.constant_bytes
    assert expected is not None
    for layer in owners:
        bits = int(str(chosen[layer.name])[1])
        expected += -(-(layer.num_weights * bits + 32 * layer.num_channels) // 8)
        weight = quantized.get_submodule(layer.name).weight
        assert isinstance(weight, Tensor)
        assert weight.unique().numel() <= layer.num_channels * 2**bits
    (budget,) = result.problem.budgets
    assert budget.used(result.columns) == expected
    # A parameter in two layouts is two tensors; a computed weight has sources of another size.
    twice = WIDTH * WIDTH * 3 * sum(name == "two layouts" for name in recipe.steps)
    if not COMPUTED & {*recipe.steps}:
        assert sum(x.num_weights for x in owners) == coverage.covered_elements + twice
    rows = result.problem.loss.values
    if result.problem.interactions is None:
        parts = [rows[i, column] for i, column in enumerate(result.columns)]
        assert result.solution.loss == pytest.approx(sum(parts))


@given(recipe=recipes(), name=st.sampled_from(("measured", "sketch", "weight-error", "fisher")))
@few
def test_a_layer_alone_costs_what_it_costs_beside_others(recipe: Recipe, name: str) -> None:
    """A block's estimate is the sum of its layers': whoever is asked about beside them."""
    model, data = built(recipe)

    def table(**rules: Any) -> mpq.CostTable:
        # Others look at all layers that share a weight.
        options = {"rules": mpq.Rules(**rules), "rounding": "nearest"}
        asked = Prepared.of(task_of(model, data, recipe, **options))
        on = Estimation(asked.network, asked.calibration, asked.quantizer, asked.candidates)
        return mpq.ESTIMATORS.build(name).estimate(on).table

    whole = answered(table)
    if whole is None:
        return
    for layer, row in zip(whole.layers, whole.values, strict=True):
        alone = answered(partial(table, include=[layer]))
        if alone is None:
            continue
        assert alone.layers == (layer,)
        scale = max(float(whole.values.max()), 1e-9)
        np.testing.assert_allclose(alone.values[0], row, rtol=1e-3, atol=1e-5 * scale)


@given(recipe=recipes(("logits",), ("float32", "float64")))
@some
def test_measured_is_what_a_loop_by_hand_finds(recipe: Recipe) -> None:
    """One layer's parameter written over, the network run, the divergence written out."""
    model, data = built(recipe)
    task = task_of(
        model, data, recipe, candidates=["w4t"], rules=mpq.Rules(fold=False),
        ranges=mpq.Ranges(weight="minmax"), rounding="nearest",
    )  # fmt: skip
    prepared = answered(lambda: Prepared.of(task))
    if prepared is None:
        return
    on = Estimation(prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates)
    table = mpq.ESTIMATORS.build("measured").estimate(on).table
    before = [run(model, batch).double() for batch in data]

    for layer, (loss,) in zip(prepared.network.layers, table.values.tolist(), strict=True):
        place = place_of(model, layer)
        if place is None:
            continue
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        step = max(float(place.max()) / 7, float(-place.min()) / 8)
        place.copy_((place / step).round().clamp(-8, 7) * step)
        after = [run(model, batch).double() for batch in data]
        # All of it, as other rows may have been shortened (``max_norm``).
        model.load_state_dict(kept)
        rows = [divergence(was, now) for was, now in zip(before, after, strict=True)]
        per_example = [r.mean()[None] for r in rows] if prepared.network.is_mixing else rows
        assert loss == pytest.approx(float(torch.cat(per_example).mean()), rel=2e-3, abs=1e-10)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """``[N]`` in nats."""
    p, q = logits.log_softmax(-1), others.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def place_of(model: nn.Module, layer: Layer) -> Tensor | None:
    """The part of a parameter that is a layer; ``None`` if it is shared, computed or written."""
    if layer.computed:
        return None
    parameters = dict(model.named_parameters())
    outer, _, last = layer.name.rpartition(".")
    names: tuple[str, ...] = (
        f"{layer.name}.weight",
        layer.name,
        f"{outer}.weight_{last}",
        f"{outer}.{last}_weight",
    )
    if last in ("rows", "product"):
        names = (f"{outer}.weight",)
    owners = dict(model.named_modules())
    if any(getattr(owners.get(name), "max_norm", None) for name in (layer.name, outer)):
        return None
    found = next((parameters[name].data for name in names if name in parameters), None)
    if found is None and outer in parameters:
        found = parameters[outer].data[int(last)]
    if found is None and last in ("q_proj", "k_proj", "v_proj"):
        thirds = parameters.get(f"{outer}.in_proj_weight")
        found = None if thirds is None else thirds.data.chunk(3)["qkv".index(last[0])]
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    is_shared = (
        found is not None
        and sum(p.untyped_storage().data_ptr() == found.untyped_storage().data_ptr() for p in every)
        > 1
    )
    return None if is_shared else found


@given(recipe=recipes(("logits",)))
@few
def test_an_answer_is_not_worse_than_a_uniform_precision(recipe: Recipe) -> None:
    """Of those within the budget, on calibration examples, by more than chance."""
    model, data = built(recipe)
    task = task_of(model, data, recipe, candidates=["w2", "w4", "w8"])
    result = answered(lambda: mpq.search(task, {"weight_bytes": "1x:w4"}))
    if result is None or "mixing" in recipe.steps:
        return
    before = [run(model, batch).double() for batch in data]

    def losses(uniform: str | None = None) -> Tensor:
        layers = result.assignment.layers
        if uniform is not None:
            precision = mpq.Precision.parse(uniform)
            layers = tuple(replace(layer, precision=precision) for layer in layers)
        found = mpq.quantize(model, replace(result.assignment, layers=layers))
        pairs = zip(before, data, strict=True)
        return torch.cat([divergence(was, run(found, batch).double()) for was, batch in pairs])

    answer = losses()
    for uniform in ("w2", "w4"):
        excess = answer - losses(uniform)
        error = float(excess.std()) / len(excess) ** 0.5
        assert float(excess.mean()) <= 3 * error + 1e-6
