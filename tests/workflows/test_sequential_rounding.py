"""Answers whose weights are rounded again, each for the network that is quantized so far."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.errors import InputError
from mpq.network.modules import share_parameters
from mpq.problem.problem import Problem
from mpq.problem.solution import Solution
from mpq.quantization.codes import Codes
from mpq.quantization.precision import Precision
from mpq.report.safeguard import Safeguard
from mpq.rounding import ROUNDINGS
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.paired_moments import paired_moments
from mpq.workflows import search as search_module
from mpq.workflows.in_order import InOrder
from mpq.workflows.own_codes import OwnCodes
from mpq.workflows.sequential_rounding import SequentialRounding, round_again
from mpq.workflows.setup import Prepared
from tests.workflows.networks import Net, batches


class Words(nn.Module):
    """An embedding whose weight is the head's, a layer that is called twice, and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.twice = nn.Linear(16, 16)
        self.hidden = nn.Linear(16, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens)
        read = self.twice(torch.relu(self.twice(words)))
        found: Tensor = self.head(torch.relu(self.hidden(read)) + words)
        return found


def images() -> list[Tensor]:
    return batches(8)


def tokens() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(11, (8, 6), generator=generator) for _ in range(8)]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


LIMIT = {"effective_bits": 3.5}


def task(model: nn.Module, is_sequential: bool = True, data: Any = images, **options: Any) -> Any:
    asked = {"candidates": ["w2", "w3", "w4g16", "w8"], "rounding": "gptq", **options}
    return mpq.Task(model, data, **asked, sequential_rounding=is_sequential)


def searched(model: nn.Module, **options: Any) -> mpq.SearchResult:
    return mpq.search(task(model, **options), LIMIT, sensitivity="sketch")


def told(result: mpq.SearchResult) -> SequentialRounding:
    found = result.provenance.sequential_rounding
    assert found is not None
    return found


def prepared_for(model: nn.Module, **options: Any) -> tuple[Prepared, Estimation]:
    prepared = Prepared.of(task(model, **options))
    on = Estimation(prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates)
    return prepared, on


def test_the_second_layer_makes_good_what_the_first_one_broke() -> None:
    """Of two linear layers the second one's codes are near the least squares weight of numpy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 4, bias=False)).eval()
    x = torch.randn(64, 6)
    prepared, on = prepared_for(
        model, data=[x], held_out=[x], candidates=["w2", "w8"], metric="squared-error"
    )
    precisions = {"0": Precision.parse("w2"), "1": Precision.parse("w8")}
    gptq = ROUNDINGS.build("gptq")
    order = InOrder(on, precisions, gptq, step=1.0, damping=1e-6)

    found, left = order.codes()

    numbers = {
        name: Codes.of_stored(codes, tensor_format).numbers().numpy()
        for (name, tensor_format), codes in found.items()
    }
    first, second = (on.network.weight(name).numpy() for name in "01")
    broken, outputs = x.numpy() @ numbers["0"].T, x.numpy() @ first.T @ second.T
    expected, *_ = np.linalg.lstsq(broken, outputs, rcond=None)
    assert not left
    # Half a step of 8 bits to nearest, and what GPTQ moves the last ones by.
    step = np.abs(expected).max() / 127
    assert np.abs(numbers["1"].T - expected).max() < 2 * step
    parallel = prepared.on_calibration
    own = replace(parallel, own=OwnCodes())
    own.own.keep(precisions, found)
    assert own.measure(precisions).divergence < 1e-3 * parallel.measure(precisions).divergence


@pytest.fixture(scope="module", params=["a32", "a8"])
def demo_results(request: pytest.FixtureRequest) -> tuple[mpq.SearchResult, mpq.SearchResult]:
    """The built-in network, which is trained: without and with the second rounding."""
    found = (
        mpq.search(
            mpq.Task(
                demo.make_net(), demo.calibration, demo.held_out,
                candidates=[f"w{bits}{request.param}" for bits in (2, 3, 4)],
                ranges=mpq.Ranges(weight="minmax", activation="minmax"),
                rounding="gptq", sequential_rounding=is_sequential,
            ),
            {"effective_bits": 3}, sensitivity="weight-error",
        )
        for is_sequential in (False, True)
    )  # fmt: skip
    before, after = found
    return before, after


def test_the_loss_falls_and_the_result_says_so(
    demo_results: tuple[mpq.SearchResult, mpq.SearchResult],
) -> None:
    """On examples that no rounding has seen, and on the held-out ones; inputs quantized or not."""
    before, after = demo_results

    record = told(after)
    assert before.provenance.sequential_rounding is None
    assert record.is_kept
    assert record.num_examples == 128  # a quarter of the calibration examples, which are 512
    assert record.loss is not None
    assert record.loss_before is not None
    assert record.loss < 0.5 * record.loss_before
    assert after.measured.divergence < 0.5 * before.measured.divergence
    assert after.assignment.precisions == before.assignment.precisions
    # Prices are those of the parallel rounding, and so are uniform precisions.
    assert after.solution.loss == before.solution.loss
    for row in before.comparisons:
        if row.label != "result":
            again = after.comparison(row.label).measured
            assert again.divergence == row.measured.divergence


def test_what_is_measured_is_what_is_shipped(
    demo_results: tuple[mpq.SearchResult, mpq.SearchResult], tmp_path: Path
) -> None:
    """Saved, loaded and quantized by a backend it loses the very same."""
    result = demo_results[1]

    result.save(tmp_path)
    again = mpq.load(tmp_path)

    assert again.provenance == result.provenance
    assert again.assignment == result.assignment
    assert again.run_id == result.run_id
    measured = mpq.evaluate(demo.make_net(), again.assignment, demo.held_out)["quantized"]
    assert measured.divergence == pytest.approx(result.measured.divergence, rel=1e-6)


def test_two_searches_give_the_same_file(net: nn.Module) -> None:
    """The seed says all."""
    one, other = searched(net), searched(net)

    assert one.assignment.weights == other.assignment.weights
    assert one.provenance == other.provenance


def test_the_model_is_left_as_found(net: nn.Module) -> None:
    """Weights, hooks, gradients and mode."""
    before = {name: value.clone() for name, value in net.state_dict().items()}

    searched(net)

    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training


class Noisy(nn.Module):
    """Draws in every pass, between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(72, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(x.flatten(1)))
        found: Tensor = self.head(hidden * (0.9 + 0.2 * torch.rand(hidden.shape[1])))
        return found


def test_both_networks_draw_alike_and_the_users_generator_stays() -> None:
    """Also where passes stop before their end: without a quantized layer inputs are the same."""
    torch.manual_seed(0)
    model = Noisy().eval()
    _, on = prepared_for(model, candidates=["w8"], allow_randomness=3)
    state = torch.get_rng_state()
    twin = replace(on.network, module=share_parameters(on.network.module))

    moments = paired_moments(on, twin, on.network.layers[1:], {})["head"]

    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(moments.moment, moments.crossed)


def test_layers_that_stay_are_named(net: nn.Module) -> None:
    """Those that share a weight or are called twice keep the codes of the parallel rounding."""
    torch.manual_seed(0)
    model = Words().eval()
    _, on = prepared_for(model, data=tokens)
    precisions = {name: Precision.parse("w3") for name in on.names}

    found, left = InOrder(on, precisions, ROUNDINGS.build("gptq")).codes()

    assert [name for name, _ in found] == ["hidden"]
    assert left == {
        "words": "shares its weight with another layer",
        "twice": "a pass calls it 2 times",
        "head": "shares its weight with another layer",
    }


def test_every_layer_of_a_network_with_groups_is_rounded_again(net: nn.Module) -> None:
    """The first one from the inputs it always has: what moves is what follows."""
    _, on = prepared_for(net)
    precisions = {name: Precision.parse("w3") for name in on.names}

    found, left = InOrder(on, precisions, ROUNDINGS.build("gptq")).codes()

    assert not left
    changed = {
        name: not np.array_equal(codes.codes, on.quantizer.stored[name, f].codes)
        for (name, f), codes in found.items()
    }
    assert changed.keys() == {"conv", "grouped", "hidden", "head"}
    assert all(changed[name] for name in ("grouped", "hidden", "head"))


def test_inputs_count_as_they_are_quantized(net: nn.Module) -> None:
    """Codes for inputs of 4 bits are others than those for inputs as they are."""
    codes = []
    for spelled in ("w4a4", "w4a32"):
        _, on = prepared_for(net, candidates=[spelled])
        precisions = {name: Precision.parse(spelled) for name in on.names}
        found, _ = InOrder(on, precisions, ROUNDINGS.build("gptq")).codes()
        codes.append({name: weight.codes for (name, _), weight in found.items()})

    assert not np.array_equal(codes[0]["conv"], codes[1]["conv"])


def test_where_it_does_not_help_nothing_changes(net: nn.Module) -> None:
    """Four examples prove nothing; the result says so and is what it would be."""
    few = [batch[:1] for batch in images()]
    options = {"data": few[:4], "held_out": images()}
    before, after = searched(net, is_sequential=False, **options), searched(net, **options)

    assert not told(after).is_kept
    assert told(after).num_examples == 4  # each was left out once
    assert told(after).why == "unseen examples do not lose less by it, beyond chance"
    assert after.assignment.weights == before.assignment.weights
    assert after.measured.divergence == before.measured.divergence


def test_a_single_example_allows_no_trial(net: nn.Module) -> None:
    """It cannot be left out."""
    result = searched(net, data=[images()[0][:1]], held_out=images())

    assert told(result) == SequentialRounding(
        False, "there is a single calibration example, or one batch whose rows mix"
    )


def test_weights_to_nearest_stay_so(net: nn.Module) -> None:
    """Where ``auto`` has found that data does not help, there is nothing to make again."""
    result = searched(net, data=[images()[0][:1]], held_out=images(), rounding="auto")

    assert result.assignment.weights is None
    assert told(result).why.startswith("no weight of the answer, rounded with regard to data")


@pytest.fixture(scope="module")
def of_demo() -> tuple[Prepared, Estimation, dict[str, Precision]]:
    """The built-in network at 3 bits."""
    ranges = mpq.Ranges(weight="minmax", activation="minmax")
    options = {"data": demo.calibration, "held_out": demo.held_out, "ranges": ranges}
    prepared, on = prepared_for(demo.make_net(), candidates=["w3", "w8"], **options)
    return prepared, on, {name: Precision.parse("w3") for name in on.names}


def test_codes_that_break_an_objective_are_not_kept(
    of_demo: tuple[Prepared, Estimation, dict[str, Precision]],
) -> None:
    """The limit on the loss is asked again with the new codes."""
    prepared, on, precisions = of_demo
    gptq, own = ROUNDINGS.build("gptq"), OwnCodes()
    asked = list[bool]()

    def accepts() -> bool:
        asked.append(own.quantizer(precisions, prepared.quantizer) is not prepared.quantizer)
        return False

    found = round_again(on, precisions, gptq, 0, own, accepts)

    assert asked == [True]
    assert not found.is_kept
    assert "does not keep the objective's limit" in found.why
    assert own.quantizer(precisions, prepared.quantizer) is prepared.quantizer


def test_codes_are_of_one_assignment_alone(
    of_demo: tuple[Prepared, Estimation, dict[str, Precision]],
) -> None:
    """Another one that shares precisions has the codes of the parallel rounding."""
    prepared, on, precisions = of_demo
    other = {**precisions, on.names[-1]: Precision.parse("w8")}
    before = [prepared.on_held_out.measure(each).divergence for each in (precisions, other)]

    found = round_again(on, precisions, ROUNDINGS.build("gptq"), 0, prepared.own_codes)

    assert found.is_kept
    after = [prepared.on_held_out.measure(each).divergence for each in (precisions, other)]
    assert after[0] < before[0]
    assert after[1] == before[1]


def test_an_answer_that_is_replaced_is_rounded_again(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uniform precision that takes its place is no worse off."""

    def replaced(_: Prepared, problem: Problem, solution: Solution, __: Any) -> Any:
        columns = problem.columns_of({n: Precision.parse("w3") for n in problem.loss.layers})
        return replace(solution, columns=columns), Safeguard((), "w3a32")

    monkeypatch.setattr(search_module, "never_worse", replaced)
    result = searched(net)

    assert set(map(str, result.assignment.precisions.values())) == {"w3a32"}
    prepared, on = prepared_for(net)
    round_again(on, result.assignment.precisions, ROUNDINGS.build("gptq"), 0, prepared.own_codes)
    expected = prepared.own_codes.quantizer(result.assignment.precisions, prepared.quantizer)
    assert result.assignment.weights is not None
    for name, codes in result.assignment.weights.by_layer.items():
        cell = name, result.assignment.precisions[name].weight
        assert np.array_equal(codes.codes, expected.stored[cell].codes)


def test_rounding_to_nearest_is_refused(net: nn.Module) -> None:
    """It does not look at inputs."""
    with pytest.raises(InputError, match="rounding 'nearest' does not look at them: take another"):
        task(net, rounding="nearest")


def test_compare_refuses_it(net: nn.Module) -> None:
    """What it compares are predictions, of which none is of codes that are made again."""
    with pytest.raises(InputError, match="leave out sequential_rounding"):
        mpq.compare(task(net), ["effective_bits=4"])


def test_the_command_line(tmp_path: Path) -> None:
    """The flag reaches the run, whose end says what came of it."""
    options = ("--precisions", "w3,w4", "--limit", "effective_bits=3.5", "--points", "2")
    fast = ("--sensitivity", "weight-error", "--weight-range", "minmax", "--rounding", "gptq")
    run = ["search", *options, *fast, "--sequential-rounding", "--output", str(tmp_path / "run")]

    done = CliRunner().invoke(app, run)

    assert done.exit_code == 0, done.output
    assert "sequential rounding: rounded again layer by layer" in " ".join(done.output.split())
    made = json.loads((tmp_path / "run" / "result.json").read_text())["provenance"]
    assert made["sequential_rounding"]["is_kept"] is True
    refused = CliRunner().invoke(app, [*run, "--rounding", "nearest"])
    assert refused.exit_code != 0
    assert "--sequential-rounding" in refused.output


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            SequentialRounding(False, "no gain", 8, 0.2, 0.1, {"a": "why", "b": "why"}),
            [
                "sequential rounding: not kept: no gain; 8 calibration examples that a trial had "
                "not seen lose 0.2 nats by it, not 0.1",
                "layers that sequential rounding leaves as they are: 2 as why",
            ],
        ),
        (SequentialRounding(False, "no trial"), ["sequential rounding: not kept: no trial"]),
    ],
)
def test_sentences(record: SequentialRounding, expected: list[str]) -> None:
    """What people are told."""
    assert list(record.sentences("nats")) == expected
