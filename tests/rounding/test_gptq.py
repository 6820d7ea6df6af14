"""GPTQ against optimal brain quantization, written out column by column in double precision."""

import numpy as np
import pytest
import torch

from mpq.errors import InputError
from mpq.quantization.codes import Codes
from mpq.rounding import Gptq, Nearest
from tests.rounding.cases import Array, all_codes_of, damped, errors, formats_of, layer, rounded


def nearest(codes: Codes, input_: int, wanted: Array) -> Array:
    """``[O]`` nearest numbers of one input, from its scales, by trying all of them."""
    told = codes.tensor_format
    all_codes = all_codes_of(told)
    group = input_ // (told.group_size or codes.num_inputs)
    scale, point = codes.scale[:, group].double().numpy(), codes.zero_point[:, group].numpy()
    grid = (all_codes[None] - point[:, None]) * scale[:, None]  # [O, codes]
    best = np.abs(grid - wanted[:, None]).argmin(axis=1)
    return np.asarray(np.take_along_axis(grid, best[:, None], axis=1)[:, 0])


def textbook(codes: Codes, rows: Array, form: Array, activation_order: bool) -> Array:
    """OBQ's updates (Frantar and Alistarh 2022, arXiv:2208.11580), inputs in a fixed order."""
    order = np.argsort(-np.diag(form), kind="stable") if activation_order else range(len(form))
    left, inverse, found = rows.copy(), np.linalg.inv(form), np.empty_like(rows)
    for k in order:
        found[:, k] = nearest(codes, k, left[:, k])
        error = (left[:, k] - found[:, k]) / inverse[k, k]
        left -= np.outer(error, inverse[k])
        inverse -= np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return found


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize(
    "spelling", ["w2", "w3", "w8", "w4z", "w4g5", "w3zg8", "w4t", "fp4", "fp8", "mxfp4", "nvfp4"]
)
@pytest.mark.parametrize(("num_inputs", "seed"), [(7, 0), (32, 1), (75, 2)])
def test_gptq_is_the_textbooks(
    spelling: str, num_inputs: int, seed: int, activation_order: bool
) -> None:
    """Within a block and beyond it, in both orders, with groups and zero points."""
    rows, moment = layer(6, num_inputs, seed=seed)
    start = rounded(Nearest(), rows, moment, formats_of(spelling))[0]

    (found,) = rounded(Gptq(activation_order=activation_order), rows, moment, formats_of(spelling))

    expected = textbook(start, rows.double().numpy(), damped(moment[0]), activation_order)
    assert np.allclose(found.numbers().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.scale, start.scale)


def test_inputs_that_do_not_hang_together_are_rounded_to_nearest() -> None:
    """With a diagonal second moment nothing can be made good."""
    rows, _ = layer(5, 40)
    moment = torch.diag(torch.rand(40, generator=torch.Generator().manual_seed(0)))[None]

    for spelling in ("w2", "w4zg7", "fp8"):
        (found,) = rounded(Gptq(), rows, moment, formats_of(spelling))
        (expected,) = rounded(Nearest(), rows, moment, formats_of(spelling))
        assert torch.equal(found.codes, expected.codes)


def test_large_inputs_come_first() -> None:
    """The order matters where inputs differ, and helps on average."""
    wins = 0
    for seed in range(20):
        rows, moment = layer(16, 30, seed=seed)
        spread = torch.logspace(-1, 1, 30)
        moment = moment * spread * spread[:, None]
        own, other = (
            rounded(Gptq(activation_order=order), rows, moment, formats_of("w3"))[0].numbers()
            for order in (True, False)
        )
        wins += errors(rows, own, moment).sum() < errors(rows, other, moment).sum()

    assert wins >= 18


def test_all_of_many_equal_inputs_share_the_error() -> None:
    """Of 64 copies of one input only the sum matters, and it comes out almost right."""
    rows, _ = layer(8, 64)
    moment = torch.ones(1, 64, 64)

    (found,) = rounded(Gptq(damping=1e-3), rows, moment, formats_of("w3"))
    (plain,) = rounded(Nearest(), rows, moment, formats_of("w3"))

    own, expected = ((c.numbers() - rows).sum(dim=1).abs().mean() for c in (found, plain))
    assert own < expected / 5


def test_an_indefinite_second_moment_is_refused_unless_it_is_damped() -> None:
    """By a sentence; nothing is raised silently."""
    rows, moment = layer(3, 6)
    indefinite = moment - 0.001 * moment[0].trace() * torch.eye(6)

    with pytest.raises(InputError, match="larger damping"):
        rounded(Gptq(damping=1e-6), rows, indefinite, formats_of("w4"))
    assert rounded(Gptq(damping=0.1), rows, indefinite, formats_of("w4"))


@pytest.mark.parametrize("damping", [0.0, -1.0, 1e7, float("nan")])
def test_a_damping_that_leaves_nothing_to_invert_is_refused(damping: float) -> None:
    """With what is expected."""
    with pytest.raises(InputError, match="damping"):
        Gptq(damping=damping)
