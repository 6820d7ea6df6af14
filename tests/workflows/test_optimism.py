"""How much more errors of codes are on unseen examples, and prices that know of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import SOLVERS
from mpq.network.modules import weight_of
from mpq.problem.problem import Problem
from mpq.quantization.precision import Precision
from mpq.sensitivity.output_sketch import OutputSketch
from mpq.solvers.queries.solve import solve
from mpq.workflows.best_in_parts import best_in_parts
from mpq.workflows.inside import solved_in_parts
from mpq.workflows.optimism import factors, optimism, pooled
from mpq.workflows.other_answers import best_answer
from mpq.workflows.rounded_weights import rounded_by_all
from mpq.workflows.setup import Prepared
from mpq.workflows.shown_examples import shares

W3 = Precision.parse("w3").weight


class Layer(nn.Module):
    """One layer that no gradient reaches, so that its second moment is the plain one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(32, 16)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.layer(x).detach()
        return found


class Head(nn.Module):
    """Convolutions that see many positions, and a wide layer that sees a vector per example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16 * 3 * 3, 10)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self._features(x).flatten(1))
        return 4 * found

    def _features(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.second(self.first(x).relu()).relu(), 2)


def vectors(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 1, 32, generator=generator))


def head_task(**options: Any) -> mpq.Task:
    images = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    data, held_out = list(images[:24].split(4)), [images[24:]]
    candidates = ["w2", "w3", "w4", "w8"]
    return replace(mpq.Task(Head(), data, held_out, candidates=candidates), **options)


@pytest.mark.parametrize("count", [16, 400])
def test_it_is_the_growth_of_output_errors_beside_that_of_rounding_to_nearest(count: int) -> None:
    """By the layer's own outputs, of codes and to nearest, in float64."""
    data = vectors(count)
    prepared = Prepared.of(mpq.Task(Layer(), data, data[:1], candidates=["w3"]))
    on = replace(prepared.asked, quantizer=prepared.nearest)
    (shown, _), *_ = shares(on, 0.25, 0)[1]
    rounding = mpq.ROUNDINGS.build("coordinate-descent")
    stored = rounded_by_all(shown, rounding, [W3], 0).stored

    found = optimism(on, stored, [W3], shown)

    x, cut = torch.cat(data).double(), 3 * count // 4
    layer = prepared.network.layer_module("layer")
    growth = []
    for quantizer in (replace(prepared.nearest, stored=stored), prepared.nearest):
        wrong = (quantizer.weight("layer", layer, W3) - weight_of(layer)).detach().double().T
        squares = (x @ wrong).square().sum(dim=1)
        growth.append(float(squares[cut:].mean() / squares[:cut].mean()))
    assert found == {"layer": pytest.approx(growth[0] / growth[1], rel=1e-3)}
    # Of 12 vectors with 32 numbers codes fit much, of 300 little.
    assert found["layer"] > 5 if count == 16 else found["layer"] < 1.5


def test_shares_are_pooled_by_their_geometric_mean() -> None:
    assert pooled([{"a": 2.0, "b": 1.0}, {"a": 8.0}]) == {"a": pytest.approx(4.0)}


def test_only_the_wide_layer_of_few_examples_is_priced_too_low() -> None:
    found = Prepared.of(head_task()).rounded.optimism
    assert found.keys() == {"first", "second", "head"}
    assert found["head"] > 5
    assert max(found["first"], found["second"]) < 1.5


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_without_a_trial_nothing_is_known(rounding: str) -> None:
    assert not Prepared.of(head_task(rounding=rounding)).rounded.optimism


def test_what_a_cache_keeps_of_a_trial_has_it(tmp_path: Path) -> None:
    first, again = (Prepared.of(head_task(cache=tmp_path)).rounded for _ in range(2))
    assert first.optimism == again.optimism
    assert first.optimism


def priced_too_low(factor: float) -> tuple[Prepared, Problem, Problem]:
    """Two problems, of which the second has the first's prices, the head's divided."""
    prepared = Prepared.of(head_task(rounding="nearest"))
    right = OutputSketch(interactions=False).estimate(prepared.asked).table
    of_head = np.array([[factor if name == "head" else 1.0] for name in right.layers])
    limits = prepared.constraints([mpq.Limit.parse("effective_bits=4")])
    prepared.__dict__["rounded"] = replace(prepared.rounded, optimism={"head": factor})
    wrong = replace(right, values=right.values / of_head)
    return prepared, Problem(right, limits), Problem(wrong, limits)


def test_prices_times_what_unseen_examples_say_give_the_better_answer() -> None:
    """A head that seems to lose nothing gets the fewest bits, until held-out examples are asked."""
    prepared, right, wrong = priced_too_low(1e6)
    first = solve(SOLVERS.build("auto"), wrong)

    found, checks = best_answer(prepared, wrong, first, None)

    best = solve(SOLVERS.build("auto"), right)
    assert checks["unseen"].is_replaced
    assert found.precisions(wrong) == best.precisions(right)
    assert first.precisions(wrong) != best.precisions(right)
    assert found.solver.endswith("replaced by prices for unseen examples")


def test_prices_that_are_a_little_too_low_are_not_solved_with_again() -> None:
    prepared, _, wrong = priced_too_low(1.9)
    first = solve(SOLVERS.build("auto"), wrong)
    assert best_answer(prepared, wrong, first, None) == (first, {})


def test_what_became_of_it_is_told_and_read_again(tmp_path: Path) -> None:
    result = mpq.search(head_task(), {"effective_bits": 4}, sensitivity="sketch")
    assert result.safeguard is not None
    assert result.safeguard.unseen is not None
    assert any("prices for unseen examples gave" in told for told in result.safeguard.sentences)
    result.save(tmp_path)
    assert mpq.load(tmp_path).safeguard == result.safeguard


def test_channels_are_priced_for_unseen_examples_as_well() -> None:
    """Each of a layer's times the layer's factor; which answer is best, held-out examples say."""
    prepared = Prepared.of(head_task(split="channels"))
    found = OutputSketch().estimate(prepared.asked)
    problem = Problem(found.table, prepared.constraints([mpq.Limit.parse("effective_bits=4")]))
    whole = solve(SOLVERS.build("auto"), problem)
    split = prepared.task.parts
    assert split is not None
    known = prepared.rounded.optimism

    *_, (raised, answer) = solved_in_parts(prepared, split, problem, whole, found)
    prepared.__dict__["rounded"] = replace(prepared.rounded, optimism={})
    own, *_, last = solved_in_parts(prepared, split, problem, whole, found)

    of_rows = np.array([[known[row.partition("[")[0]]] for row in own[0].loss.layers])
    np.testing.assert_allclose(raised.loss.values, own[0].loss.values * of_rows, rtol=1e-6)
    assert answer.precisions(raised) != last[1].precisions(last[0])


def test_only_prices_of_codes_that_fit_examples_are_raised() -> None:
    """Not the original's weights, nor a precision that was rounded to nearest all the same."""
    prepared = Prepared.of(head_task(rounding="nearest", candidates=["w2", "w4", "wfp8", "fp32"]))
    loss = OutputSketch(interactions=False).estimate(prepared.asked).table
    found = factors(loss, {"head": 7.0}, ("w2",))
    assert found.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 7, 7, 1]]


@pytest.mark.parametrize(("factor", "is_taken"), [(1.0, True), (7.0, False)])
def test_parts_that_are_no_better_are_taken_where_examples_can_price_them(
    factor: float, is_taken: bool
) -> None:
    """The answer in parts is the same as that of whole layers: neither worse nor better."""
    prepared = Prepared.of(head_task(rounding="nearest"))
    loss = OutputSketch(interactions=False).estimate(prepared.asked).table
    problem = Problem(loss, prepared.constraints([mpq.Limit.parse("effective_bits=4")]))
    whole = solve(SOLVERS.build("auto"), problem)
    prepared.__dict__["rounded"] = replace(prepared.rounded, optimism={"head": factor})

    *_, check = best_in_parts(prepared, [(problem, whole)], problem, whole)

    assert check.is_replaced is is_taken
