"""Searches with a rounding that looks at the data: one set of numbers from estimate to export."""

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

import mpq
from mpq.backends.simulate import quantizer_of
from mpq.cli.console import print_result
from mpq.errors import (
    FileFormatError,
    InputError,
    MismatchError,
    UnknownNameError,
)
from mpq.network.modules import weight_of
from mpq.quantization.precision import Precision, spell_weight
from mpq.quantization.quantizer import quantized
from mpq.quantization.tensor_format import TensorFormat
from mpq.report.measurement import Measurement
from mpq.rounding import AutoRounding
from mpq.rounding._base import StackSolver
from mpq.rounding.stack import Stack
from mpq.sensitivity import Estimation
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.rounded_weights import rounded_weights
from mpq.workflows.setup import Prepared
from tests.workflows.networks import Net, batches

DATA_ROUNDINGS = tuple(name for name in mpq.ROUNDINGS.names() if name != "nearest")


class Words(nn.Module):
    """An embedding whose weight is the head's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens)
        found: Tensor = self.head(torch.relu(self.hidden(words)) + words)
        return found


def images() -> list[Tensor]:
    return batches(4)


def tokens() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(11, (8, 6), generator=generator) for _ in range(4)]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def task(model: nn.Module, rounding: str, **options: Any) -> mpq.Task:
    return mpq.Task(model, images, **{"candidates": CANDIDATES, **options}, rounding=rounding)


LIMIT = {"effective_bits": 4.5}


@pytest.mark.parametrize("rounding", DATA_ROUNDINGS)
def test_what_is_measured_is_what_a_backend_makes(
    net: nn.Module, rounding: str, tmp_path: Path
) -> None:
    result = mpq.search(task(net, rounding), LIMIT, sensitivity="sketch")
    held_out = mpq.Calibration.of(images).split(0.25)[1]
    model = mpq.quantize(net, result.assignment)
    measured = mpq.evaluate(net, result.assignment, held_out)["quantized"]
    assert measured.divergence == pytest.approx(result.measured.divergence, rel=1e-6)
    result.save(tmp_path)
    again = mpq.load(tmp_path)
    assert again.assignment == result.assignment
    assert again.run_id == result.run_id
    assert again.provenance == result.provenance
    loaded = mpq.quantize(net, again.assignment)
    x = images()[0]
    with torch.no_grad():
        assert torch.equal(model(x), loaded(x))


def test_the_codes_are_those_that_were_priced(net: nn.Module) -> None:
    found = Prepared.of(task(net, "gptq"))
    result = mpq.search(task(net, "gptq"), LIMIT, sensitivity="sketch")
    kept = quantizer_of(result.assignment)
    for name, precision in result.assignment.precisions.items():
        layer_module = found.network.layer_module(name)
        priced = found.quantizer.weight(name, layer_module, precision.weight)
        assert torch.equal(kept.weight(name, layer_module, precision.weight), priced)


def test_rounding_changes_what_the_weights_become(net: nn.Module) -> None:
    nearest, gptq = (
        mpq.search(task(net, rounding), LIMIT, sensitivity="sketch")
        for rounding in ("nearest", "gptq")
    )
    assert nearest.assignment.weights is None
    assert gptq.assignment.weights is not None
    assert set(gptq.assignment.weights.by_layer) == set(gptq.assignment.precisions)
    assert gptq.comparison("w2a32").measured.divergence < (
        nearest.comparison("w2a32").measured.divergence
    )
    assert gptq.provenance.rounding == "gptq"
    assert json.loads(gptq.assignment.to_json())["weights"]["rounding"] == "gptq"


def test_the_same_seed_gives_the_same_codes(net: nn.Module) -> None:
    first, again = (
        mpq.search(task(net, "coordinate-descent"), LIMIT, sensitivity="sketch").assignment
        for _ in range(2)
    )
    assert first == again


def test_layers_that_share_a_weight_have_one_set_of_codes() -> None:
    torch.manual_seed(0)
    model = Words().eval()
    asked = mpq.Task(model, tokens, candidates=["w2", "w4"], rounding="gptq")
    prepared = Prepared.of(asked)
    two = Precision.parse("w2").weight
    stored = prepared.rounded.stored
    for part, array in stored["words", two].parts().items():
        assert (array == stored["head", two].parts()[part]).all()
    result = mpq.search(asked, {"effective_bits": 5.5}, sensitivity="sketch")
    quantized = mpq.quantize(model, result.assignment)
    words, head = (weight_of(quantized.get_submodule(name)) for name in ("words", "head"))
    assert torch.equal(words, head)


def test_an_embedding_alone_is_rounded_to_nearest_and_named() -> None:
    torch.manual_seed(0)
    model = Words().eval()
    model.head = nn.Linear(16, 11, bias=False).eval()
    asked = mpq.Task(model, tokens, candidates=["w2", "w4"], rounding="gptq")
    result = mpq.search(asked, {"effective_bits": 5.5}, sensitivity="sketch")
    assert list(result.provenance.rounded_to_nearest) == ["words"]
    assert result.assignment.weights is not None
    assert sorted(result.assignment.weights.by_layer) == ["head", "hidden"]


def test_nearest_keeps_nothing(net: nn.Module) -> None:
    prepared = Prepared.of(task(net, "nearest"))
    on = Estimation(prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates)
    found = rounded_weights(on, mpq.ROUNDINGS.build("nearest"), seed=0)
    assert not found.stored
    assert not found.to_nearest


def test_formats_without_scales_need_no_pass(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpq.workflows.shown_examples.PartialMoments", None)  # no call passes
    prepared = Prepared.of(task(net, "gptq", candidates=["fp16", "bf16"]))
    assert not prepared.rounded.stored


def test_an_unknown_rounding_is_refused_at_once(net: nn.Module) -> None:
    with pytest.raises(UnknownNameError, match="rounding 'gtpq'"):
        task(net, "gtpq")
    with pytest.raises(InputError, match="damping above 0"):
        task(net, "gptq:damping=0")


def test_another_checkpoint_of_the_network_is_refused(net: nn.Module) -> None:
    result = mpq.search(task(net, "gptq"), LIMIT, sensitivity="sketch")
    torch.manual_seed(5)
    with pytest.raises(MismatchError, match="its codes were rounded from another weight"):
        mpq.quantize(Net().eval(), result.assignment)


def test_a_folder_of_a_run_to_nearest_keeps_no_codes_of_an_earlier_one(
    net: nn.Module, tmp_path: Path
) -> None:
    mpq.search(task(net, "gptq"), LIMIT, sensitivity="sketch").save(tmp_path)
    assert (tmp_path / "assignment.safetensors").exists()
    mpq.search(task(net, "nearest"), LIMIT, sensitivity="sketch").save(tmp_path)
    assert not (tmp_path / "assignment.safetensors").exists()
    assert mpq.load(tmp_path).assignment.weights is None


def test_the_model_is_left_as_found(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    mpq.search(task(net, "gptq"), LIMIT, sensitivity="sketch")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(parameter.grad is not None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def unseen_losses(prepared: Prepared, spelling: str) -> tuple[float, float]:
    """What a uniform precision loses on the last quarter of the calibration examples.

    By codes that coordinate descent found with the other three quarters, and to nearest.
    """
    seen, unseen = prepared.calibration.split(0.25)
    plain = replace(prepared.quantizer, stored={})
    on = Estimation(prepared.network, seen, plain, prepared.candidates)
    trial = rounded_weights(on, mpq.ROUNDINGS.build("coordinate-descent"), seed=0)
    precisions = dict.fromkeys(on.names, Precision.parse(spelling))
    losses = []
    for stored in (trial.stored, {}):
        found = 0.0
        for batch in prepared.network.batches(unseen):
            with torch.no_grad():
                original = prepared.network.outputs(batch)
                with quantized(prepared.network, precisions, replace(plain, stored=stored)):
                    changed = prepared.network.outputs(batch)
            found += float(prepared.network.metric.divergence(original, changed).sum())
        losses.append(found)
    return losses[0], losses[1]


TRIED = ("w2", "w4g16", "w8")
"""Of the fewest, the middle and the most bits."""


CANDIDATES = ("w2", "w3", "w4g16", "w8")


def test_auto_takes_what_unseen_examples_bear_out(net: nn.Module) -> None:
    """Codes from all examples, of all formats but some of the fewest bits, or of none."""
    prepared = Prepared.of(task(net, "auto"))
    losses = {spelling: unseen_losses(prepared, spelling) for spelling in CANDIDATES}
    worse = {s for s, (trial, nearest) in losses.items() if trial > nearest}
    rounded = prepared.rounded
    assert rounded.unhelped in (CANDIDATES, (), *((CANDIDATES[:n]) for n in range(len(worse) + 1)))
    assert rounded.unhelped == CANDIDATES or worse.issuperset(rounded.unhelped)
    assert {spell_weight(f) for _, f in rounded.stored} == {*CANDIDATES} - {*rounded.unhelped}
    by_all = Prepared.of(task(net, "coordinate-descent")).rounded.stored
    for cell, weight in rounded.stored.items():
        for part, array in weight.parts().items():
            # Second moments of quarters add up to those of all but for the last bits.
            assert np.isclose(array, by_all[cell].parts()[part], rtol=1e-3).mean() > 0.99


@pytest.mark.parametrize(
    ("worse", "unhelped"),
    [
        (["", "", ""], ()),
        (["w2", "", ""], ("w2",)),
        (["w2", "w3", ""], ("w2", "w3")),
        (["w2", "w3", "w4g16", "w8"], CANDIDATES),
        (["w2 w8"], CANDIDATES),
        (["w2", "w8"], CANDIDATES),
    ],
)
def test_the_fewest_bits_alone_may_stay_to_nearest(
    net: nn.Module, worse: list[str], unhelped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What remains is asked about again; where more bits lose more, nothing is rounded."""
    asked: list[list[str]] = []

    def told(_: object, tried: list[TensorFormat]) -> tuple[list[TensorFormat], dict[str, float]]:
        asked.append([spell_weight(f) for f in tried])
        return [f for f in tried if spell_weight(f) in worse[len(asked) - 1].split()], {}

    monkeypatch.setattr("mpq.workflows.rounded_weights._Trial._unhelped", told)
    rounded = Prepared.of(task(net, "auto")).rounded
    assert rounded.unhelped == unhelped
    assert {spell_weight(f) for _, f in rounded.stored} == {*CANDIDATES} - {*unhelped}
    assert asked[0] == ["w2", "w4g16", "w8"]
    assert len(asked) == 1 or asked[1] == ["w3", "w4g16", "w8"]


class Wide(nn.Module):
    """More inputs than a handful of examples tell anything about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.second(self.first(x).relu())
        return found


@pytest.mark.parametrize("count", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("seed", range(4))
def test_few_examples_are_not_overfitted(count: int, seed: int) -> None:
    """Codes fit them, and prices of such codes are too low: never much worse than to nearest."""
    torch.manual_seed(seed)
    batches, held_out = [*torch.randn(count, 1, 64)], [torch.randn(256, 64)]
    losses = []
    for rounding in ("auto", "nearest"):
        asked = mpq.Task(
            Wide(), batches, held_out, candidates=["w2", "w3", "w4"], rounding=rounding
        )
        result = mpq.search(asked, {"effective_bits": 4.5}, sensitivity="sketch")
        losses.append(result.measured.divergence)
    assert losses[0] <= 1.2 * losses[1]


def test_many_examples_are_taken_for_what_they_are_worth() -> None:
    """Inputs that hang together, of which there are enough."""
    torch.manual_seed(0)
    batches = [*(torch.randn(64, 1, 8) @ torch.randn(8, 64))]
    held_out = [torch.randn(256, 8) @ torch.randn(8, 64)]
    result = mpq.search(
        mpq.Task(Wide(), batches, held_out, candidates=["w2", "w3", "w4"]), {"effective_bits": 4.5}
    )
    assert result.assignment.weights is not None
    assert not result.provenance.rounding_unhelped


class Deep(nn.Module):
    """Of which two bits leave nothing where all layers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(12))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Confident logits."""
        for layer in self.layers:
            x = torch.tanh(1.7 * layer(x) * 24**0.5 / 2)
        return 8 * x


def test_a_format_that_breaks_the_network_is_tried_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every layer once, fewer at a time until an answer is better than none; others all at once."""
    seen: dict[str, list[tuple[str, ...]]] = {}
    measure = Evaluator.measure

    def recording(self: Evaluator, precisions: Mapping[str, Precision]) -> Measurement:
        seen.setdefault(str(next(iter(precisions.values()))), []).append(tuple(precisions))
        return measure(self, precisions)

    monkeypatch.setattr(Evaluator, "measure", recording)
    batches = [*torch.randn(64, 1, 24, generator=torch.Generator().manual_seed(1))]
    prepared = Prepared.of(mpq.Task(Deep(), batches, candidates=["w2", "w4", "w8"]))
    assert not prepared.rounded.to_nearest
    names = tuple(layer.name for layer in prepared.network.layers)
    sizes = [len(part) for part in seen["w2a32"]]
    assert sizes[:2] == [12, 12]
    assert sizes[2:10] == [3] * 8
    assert {name for part in seen["w2a32"][2:6] for name in part} == {*names}
    assert {*seen["w8a32"]} == {names}


@pytest.mark.parametrize(
    ("gains", "expected", "asked"),
    [
        ([[0.5, 0.6, 0.4, 0.5]], [], 1),
        ([[0.5, -0.4, 0.3, -0.2], *[[0.5, 0.4, 0.3, 0.4]] * 3], [], 4),
        ([[0.5, -0.4, 0.3, -0.2]] * 4, ["w2", "w4g16", "w8"], 4),
        ([[-0.5, -0.6, -0.4, -0.5], *[[0.5, 0.6, 0.4, 0.5]] * 3], [], 4),
        ([[-0.5, -0.6, -0.4, -0.5]] * 4, ["w2", "w4g16", "w8"], 4),
    ],
)
def test_where_one_part_does_not_tell_the_others_are_left_out_too(
    net: nn.Module,
    gains: list[list[float]],
    expected: list[str],
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each part once; the answer is that of all together."""
    shown: list[int] = []

    def told(
        _: object, __: object, tried: list[TensorFormat], ___: int, share: Any, ____: object
    ) -> Any:
        shown.append(share[1].num_examples)
        return dict.fromkeys(tried, np.array(gains[len(shown) - 1])), {}

    monkeypatch.setattr("mpq.workflows.rounded_weights._left_out", told)
    rounded = Prepared.of(task(net, "auto", candidates=TRIED)).rounded
    assert rounded.unhelped == tuple(expected)
    assert len(shown) == asked
    assert len(set(shown)) == 1


def test_one_answer_to_everything() -> None:
    """The mean of the original's outputs, by scipy's divergences."""
    module, batches = Deep(), [*torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(1))]
    with torch.no_grad():
        logits = torch.cat([module(x) for x in batches]).double().numpy()
    original, answer = softmax(logits, axis=1), softmax(logits.mean(axis=0))

    found = Reference(module, mpq.Calibration.of(batches)).uninformed

    assert found == pytest.approx(rel_entr(original, answer).sum(axis=1).mean(), rel=1e-5)


def test_examples_that_are_all_alike_prove_nothing() -> None:
    result = mpq.search(
        mpq.Task(Wide(), [torch.ones(8, 64)] * 4, [torch.ones(2, 64)], candidates=["w2", "w4"]),
        {"effective_bits": 4.5},
    )
    assert result.provenance.rounding_unhelped == ("w2", "w4")


def test_auto_rounds_to_nearest_where_nothing_helps(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples on which rounding to nearest is not bettered, by a rounding that does harm."""

    class Harmful(StackSolver):
        def solve(self, stack: Stack) -> tuple[Tensor, Stack]:
            return stack.low[None].expand_as(stack.target).clone(), stack

    monkeypatch.setattr(AutoRounding, "prepared", lambda *_: Harmful())
    result = mpq.search(task(net, "auto"), LIMIT, sensitivity="sketch")
    assert result.provenance.rounding_unhelped == CANDIDATES
    assert result.assignment.weights is None
    nearest = mpq.search(task(net, "nearest"), LIMIT, sensitivity="sketch")
    assert result.measured.divergence == nearest.measured.divergence


class Undifferentiable(Net):
    """Nothing flows back through it."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_without_gradients_the_inputs_alone_are_looked_at() -> None:
    torch.manual_seed(0)
    result = mpq.search(
        task(Undifferentiable().eval(), "gptq"), LIMIT, sensitivity="measured:score=divergence"
    )
    assert result.assignment.weights is not None
    unguided = result.provenance.rounding_unguided
    assert set(unguided) == set(result.assignment.precisions)
    assert all("runs without gradients" in why for why in unguided.values())
    assert not any("--sensitivity" in why for why in unguided.values())


class Staircase(Net):
    """Nothing flows back from the head to what lies before the steps."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.grouped(torch.relu(self.norm(self.conv(x)))))
        steps = (hidden.flatten(1) * 8).round().detach()
        found: Tensor = self.head(torch.relu(self.hidden(steps)))
        return found


def test_layers_that_no_gradient_reaches_are_named() -> None:
    torch.manual_seed(0)
    result = mpq.search(task(Staircase().eval(), "gptq"), LIMIT)
    expected = dict.fromkeys(["conv", "grouped"], "no gradient reaches it")
    assert result.provenance.rounding_unguided == expected


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "4 of 4 weights rounded with regard to the calibration examples (--rounding gptq)"),
        ({"rounding_unguided": {"conv": "why"}}, "rounded without regard to the loss: conv (why)"),
        ({"rounded_to_nearest": {"conv": "why"}}, "weights rounded to nearest: conv (why)"),
        (
            {"rounding_unhelped": ("w2", "w8")},
            "weights at w2, w8 rounded to nearest: on calibration examples that",
        ),
    ],
)
def test_the_terminal_says_how_weights_were_rounded(
    net: nn.Module, changes: dict[str, Any], sentence: str
) -> None:
    result = mpq.search(task(net, "gptq"), LIMIT, sensitivity="sketch")
    shown = replace(result, provenance=replace(result.provenance, **changes))
    console = Console(record=True, width=500, file=io.StringIO())
    print_result(shown, console)
    assert sentence in console.export_text()


def test_auto_rounds_to_nearest_where_no_example_can_be_left_out(net: nn.Module) -> None:
    single = images()[0][:1]
    asked = mpq.Task(net, [single], held_out=[images()[1]], candidates=["w2", "w8"])
    result = mpq.search(asked, LIMIT, sensitivity="sketch")
    told = result.provenance.rounded_to_nearest
    assert result.provenance.rounding == "auto"
    assert result.assignment.weights is None
    assert list(told) == [layer.name for layer in result.assignment.layers]
    assert all("there is a single one" in why for why in told.values())


def test_what_is_not_rounded_is_not_called_so() -> None:
    torch.manual_seed(0)
    model = Words().eval()
    model.head = nn.Linear(16, 11, bias=False).eval()
    asked = mpq.Task(
        model,
        tokens,
        candidates=["w2", "w4"],
        rules=mpq.Rules(fix={"words": "fp32"}),
        rounding="gptq",
    )
    result = mpq.search(asked, {"effective_bits": 14}, sensitivity="sketch")
    assert not result.provenance.rounded_to_nearest


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rounding", sorted({*DATA_ROUNDINGS} - {"auto"}))
def test_the_default_dtype_does_not_matter(
    net: nn.Module, dtype: torch.dtype, rounding: str
) -> None:
    expected = Prepared.of(task(net, rounding)).rounded.stored
    batches = images()
    torch.set_default_dtype(dtype)
    try:
        found = Prepared.of(mpq.Task(net, batches, candidates=["w3"], rounding=rounding)).rounded
    finally:
        torch.set_default_dtype(torch.float32)
    cell = ("hidden", Precision.parse("w3").weight)
    assert found.stored[cell].codes.shape == expected[cell].codes.shape
    assert (found.stored[cell].codes != expected[cell].codes).mean() < 0.01


def test_an_assignment_that_forgot_its_weights_is_refused(net: nn.Module, tmp_path: Path) -> None:
    mpq.search(task(net, "gptq"), LIMIT, sensitivity="sketch").save(tmp_path)
    path = tmp_path / "assignment.json"
    data = json.loads(path.read_text())
    del data["weights"]
    path.write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match="lies beside it, which it does not name"):
        mpq.Assignment.load(path)
