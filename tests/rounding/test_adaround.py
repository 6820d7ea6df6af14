"""AdaRound against all ways of rounding up and down."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mpq.errors import InputError
from mpq.quantization.codes import Codes
from mpq.quantization.numerics import Numerics
from mpq.rounding import AdaRound, Gptq, Nearest
from mpq.rounding.adaround import Relaxation, beyond, logits_of, shares_of
from mpq.rounding.objective import Objective
from tests.rounding.cases import (
    SPELLINGS,
    Array,
    all_codes_of,
    damped,
    errors,
    formats_of,
    grids_of,
    layer,
    points,
    rounded,
    stack_of,
)


def neighbours(codes: Codes, rows: torch.Tensor, row: int) -> list[Array]:
    """For every input of a row the number next below and the one next above; at the ends one."""
    found = []
    for number, grid in zip(rows[row].double().numpy(), points(codes, row), strict=True):
        place = np.searchsorted(grid, number)
        found.append(np.unique(grid[np.clip([place - 1, place], 0, len(grid) - 1)]))
    return found


def optimum(codes: Codes, rows: torch.Tensor, moment: torch.Tensor) -> Array:
    """``[O]`` least quadratic errors of all ways of rounding up and down."""
    least = []
    for row in range(len(rows)):
        choices = np.meshgrid(*neighbours(codes, rows, row))
        off = np.stack(choices, axis=-1).reshape(-1, rows.shape[1]) - rows[row].double().numpy()
        least.append(np.einsum("ni,ij,nj->n", off, damped(moment[0]), off).min())
    return np.array(least)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_go_up_or_down(spelling: str) -> None:
    """To the next number on either side, whichever format, and no row is worse than to nearest."""
    rows, moment = layer(12, 30)

    (found,) = rounded(AdaRound(iterations=100), rows, moment, formats_of(spelling))

    for row in range(12):
        for number, allowed in zip(found.numbers()[row], neighbours(found, rows, row), strict=True):
            assert np.abs(allowed - float(number)).min() <= 1e-6
    (nearest,) = rounded(Nearest(), rows, moment, formats_of(spelling))
    own, expected = (errors(rows, c.numbers(), moment) for c in (found, nearest))
    assert (own <= expected * (1 + 1e-5)).all()
    assert own.sum() < 0.9 * expected.sum()
    assert torch.equal(found.scale, nearest.scale)


@pytest.mark.parametrize("spelling", ["w2", "w3", "w4z"])
@pytest.mark.parametrize("num_inputs", [3, 5, 8])
def test_it_comes_close_to_the_best_of_up_and_down(spelling: str, num_inputs: int) -> None:
    """Of four layers of 32 rows, in sum at most 25 % above exhaustive search."""
    own, best, nearest = 0.0, 0.0, 0.0
    for seed in range(4):
        rows, moment = layer(32, num_inputs, seed=10 * num_inputs + seed)
        (found,) = rounded(AdaRound(), rows, moment, formats_of(spelling))
        (plain,) = rounded(Nearest(), rows, moment, formats_of(spelling))
        own += errors(rows, found.numbers(), moment).sum()
        best += optimum(found, rows, moment).sum()
        nearest += errors(rows, plain.numbers(), moment).sum()

    assert best * (1 - 1e-4) <= own <= 1.25 * best
    assert own < nearest


@pytest.mark.parametrize("spelling", ["w2", "w3", "w4", "w3z", "fp4"])
def test_it_is_not_above_gptq(spelling: str) -> None:
    """In sum over small layers."""
    own, other = 0.0, 0.0
    for num_inputs in (4, 8, 16, 64):
        rows, moment = layer(32, num_inputs, seed=num_inputs)
        found, theirs = (
            rounded(rounding, rows, moment, formats_of(spelling))[0].numbers()
            for rounding in (AdaRound(), Gptq())
        )
        own += errors(rows, found, moment).sum()
        other += errors(rows, theirs, moment).sum()

    assert own < other


def test_gptq_is_better_where_variances_differ_much() -> None:
    """As its weights of small inputs go further than to a neighbour, which up or down rules out."""
    rows, moment = layer(32, 64)
    spread = torch.logspace(-1, 1, 64)
    moment = moment * spread * spread[:, None]

    own, other = (
        errors(rows, rounded(r, rows, moment, formats_of("w4"))[0].numbers(), moment).sum()
        for r in (AdaRound(), Gptq())
    )

    assert other < 0.9 * own


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_beyond_is_on_the_other_side(spelling: str) -> None:
    """Of every target between all numbers of a format, also next to powers of two and 0."""
    (told,) = formats_of(spelling)
    codes = all_codes_of(told)
    between = np.concatenate([codes[:-1] * (1 - s) + codes[1:] * s for s in (0.3, 0.6)])
    width = told.group_size or len(between)
    units = torch.from_numpy(np.resize(between, -(-len(between) // width) * width))[:, None]
    stack, start = stack_of(units.t().float(), spelling)
    scale, point = (t[stack.group_of] for t in (stack.scale, stack.zero_point))
    stack = replace(stack, target=((units - point) * scale).float())

    near = stack.nearest()
    pair = torch.cat([stack.all_numbers(codes) for codes in (near, beyond(stack, near))], dim=1)

    expected = np.array(neighbours(start, stack.target.t(), 0))
    np.testing.assert_allclose(pair.sort(dim=1).values.numpy(), expected, rtol=1e-5, atol=1e-9)


def test_beyond_the_ends_there_is_nothing() -> None:
    """A number that the grid does not reach has one neighbour."""
    rows = torch.tensor([[9.0, -9.0, 0.1, 0.2]])
    stack, _ = stack_of(rows, "w2")
    stack = stack.with_scale(torch.ones_like(stack.scale))

    near = stack.nearest()

    assert near[:, 0].tolist() == [1.0, -2.0, 0.0, 0.0]
    assert beyond(stack, near)[:, 0].tolist() == [1.0, -2.0, 1.0, 1.0]


def test_others_make_good_what_is_beyond_the_grid() -> None:
    """The error of a weight that is cut off counts in every other one's slope."""
    rows = torch.tensor([[2.5, 0.3, 0.3, 0.3, 0.3]])
    moment = torch.ones(1, 5, 5) + 0.01 * torch.eye(5)
    grid = replace(grids_of(rows, formats_of("w2"))[0], scale=torch.ones(1))

    (found,) = AdaRound().codes(rows, moment, formats_of("w2"), [grid], Numerics())

    # 1.5 and 1.2 are missing at first: three others go up, or two.
    assert found.numbers()[0, 0] == 1
    assert float((found.numbers() - rows).sum().abs()) < 0.5


@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("spelling", ["w2", "w3zg4", "fp4"])
def test_the_slope_is_the_derivative(spelling: str, weight: float) -> None:
    """By automatic differentiation of the paper's formula in double precision."""
    rows, moment = layer(3, 9)
    stack, _ = stack_of(rows, spelling)
    near = stack.nearest()
    relaxation = Relaxation.of(Objective.of(moment[0], 0.01), stack, near, beyond(stack, near))
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) * 3
    form, rest, gap = (t.double() for t in (relaxation.form, relaxation.rest, relaxation.gap))

    variables = logits.double().requires_grad_()
    shares = (torch.sigmoid(variables) * 1.2 - 0.1).clamp(0, 1)
    errors_ = rest + gap * shares
    each = 1 - (2 * shares - 1).abs() ** 2
    loss = torch.einsum("kr,kj,jr->r", errors_, form, errors_)
    loss = loss + weight * torch.einsum("k,kr,kr->r", form.diagonal(), gap**2, each)
    loss.sum().backward()

    assert variables.grad is not None
    found = relaxation.slope(logits, weight)
    torch.testing.assert_close(found, variables.grad.float(), rtol=1e-4, atol=1e-5)


def test_it_starts_from_the_weights_themselves() -> None:
    """Where the error is 0, but for what lies beyond the ends of the grid."""
    rows, _ = layer(6, 9)
    stack, _ = stack_of(rows, "w8")
    near = stack.nearest()
    relaxation = Relaxation.of(Objective.of(torch.eye(9), 0.01), stack, near, beyond(stack, near))

    start = relaxation.rest + relaxation.gap * relaxation.start

    inside = relaxation.gap != 0
    assert inside.float().mean() > 0.9
    assert start[inside].abs().max() < 1e-4
    assert 0 <= float(relaxation.start.min()) <= float(relaxation.start.max()) <= 0.501


def test_logits_and_shares_are_inverse() -> None:
    """But at the ends, where the slope would be cut off."""
    shares = torch.linspace(0, 1, 101)

    found = shares_of(logits_of(shares))

    torch.testing.assert_close(found[1:-1], shares[1:-1], rtol=1e-4, atol=1e-5)
    assert 0 < float(found[0]) < 0.02
    assert 0.98 < float(found[-1]) < 1
    assert shares_of(torch.tensor([-20.0, 20.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "options",
    [{"iterations": 0}, {"learning_rate": 0.0}, {"learning_rate": 11.0}, {"damping": 0.0}],
)
def test_options_without_a_meaning_are_refused(options: dict[str, float]) -> None:
    """When they are set, not when they are used."""
    with pytest.raises(InputError, match="adaround needs"):
        AdaRound(**options)  # type: ignore[arg-type]
