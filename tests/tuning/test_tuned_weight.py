"""Weights whose scales, and codes, move: against numbers in double precision, apart from torch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.quantization.codes import Codes
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.tuning.tuned_weight import TunedWeight, why_no_scale

Array = np.ndarray[Any, np.dtype[np.float64]]
SPELLINGS = ["w2", "w3", "w4z", "w3g5", "w4zg4", "w4t", "w8", "wint12", "fp8", "wnf4g6", "wternary"]


def tuned(
    spelling: str, moves_codes: bool = True, numerics: Numerics = OWN, sign: float = 1.0
) -> tuple[TunedWeight, Codes, Tensor]:
    """A weight of 6 rows of 12, rounded to nearest."""
    rows = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    tensor_format = Precision.parse(spelling).weight
    grid = weight_grid(rows, tensor_format, RANGE_METHODS.build("mse"), numerics)
    codes = Codes.of(rows, tensor_format, grid)
    codes.scale.mul_(sign)
    layer = nn.Linear(12, 6, bias=False)
    return TunedWeight(["layer"], [layer], rows, codes, numerics, moves_codes), codes, rows


def layer_of(weight: TunedWeight) -> nn.Linear:
    layer = weight._modules[0]
    assert isinstance(layer, nn.Linear)
    return layer


def spread(scale: Array, group: int) -> Array:
    """``[O, G]`` to ``[O, 12]``, also where one row or group stands for all."""
    wide = np.repeat(scale, group, axis=1)[:, :12] if scale.shape[1] > 1 else scale
    return np.broadcast_to(wide, (6, 12))


@pytest.mark.parametrize("moves_codes", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_starts_as_the_weight_was_rounded(spelling: str, moves_codes: bool) -> None:
    """Bit by bit, in the layer and as an assignment keeps it."""
    weight, codes, rows = tuned(spelling, moves_codes)

    weight.fill()

    assert torch.equal(weight.numbers(), codes.numbers())
    assert torch.equal(layer_of(weight).weight, codes.numbers())
    first, stored = codes.stored(rows).parts(), weight.stored().parts()
    assert all(np.array_equal(first[part], stored[part]) for part in first)
    assert weight.stored().why_not(weight.format, (6, 12)) == ""


@pytest.mark.parametrize("moves_codes", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_of_scales_are_finite_differences(
    spelling: str, moves_codes: bool, sign: float
) -> None:
    """Of a loss in numpy at scales that are a little larger and smaller, codes where they are."""
    weight, codes, _ = tuned(spelling, moves_codes, sign=sign)
    target = np.random.default_rng(1).normal(size=(6, 12))
    fixed = codes.codes[:, :12].double().numpy()
    group = weight.format.group_size or 12
    points = spread(codes.zero_point.double().numpy(), group)
    scale = codes.scale.double().numpy()
    scale = scale[:1, :1] if spelling == "w4t" else scale

    def loss(log_scale: Array) -> float:
        numbers = (fixed - points) * spread(scale * np.exp(log_scale), group)
        return float(np.square(numbers - target).sum() + np.sin(numbers).sum())

    weight.fill()
    layer = layer_of(weight)
    layer.weight.grad = None
    numbers = layer.weight
    ((numbers - torch.from_numpy(target).float()).square().sum() + numbers.sin().sum()).backward()
    weight.backward()

    step, expected = 1e-5, np.zeros_like(scale)
    for place in np.ndindex(*scale.shape):
        moved = np.zeros_like(scale)
        moved[place] = step
        expected[place] = (loss(moved) - loss(-moved)) / (2 * step)
    assert weight.log_scale.grad is not None
    np.testing.assert_allclose(weight.log_scale.grad.numpy(), expected, rtol=2e-3, atol=2e-3)
    assert layer.weight.grad is None


@pytest.mark.parametrize("spelling", ["w3", "w4zg4", "w4t"])
def test_gradients_of_codes_pass_straight_through(spelling: str) -> None:
    """That of a code is its weight's times the scale, as if nothing were rounded."""
    weight, codes, _ = tuned(spelling)
    slope = np.random.default_rng(1).normal(size=(6, 12)).astype(np.float32)
    weight.fill()
    (layer_of(weight).weight * torch.from_numpy(slope)).sum().backward()

    weight.backward()

    assert weight.latent is not None
    gradient = weight.latent.latent.grad
    assert gradient is not None
    group = weight.format.group_size or 12
    expected = slope * spread(codes.scale.double().numpy(), group)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("scale_type", "numpy_type"), [("fp16", np.float16), ("fp32", np.float32)])
def test_scales_are_those_that_the_file_holds(scale_type: Any, numpy_type: Any) -> None:
    """What is computed with is rounded as it is stored; the sign stays, whatever is learned."""
    numerics = Numerics(group_scale=scale_type)
    weight, codes, _ = tuned("w3g5", numerics=numerics, sign=-1.0)
    with torch.no_grad():
        weight.log_scale.uniform_(-3, 3, generator=torch.Generator().manual_seed(2))
    wanted = codes.scale * weight.log_scale.detach().exp()

    stored = weight.stored()

    assert np.array_equal(stored.scale, wanted.numpy().astype(numpy_type).astype(np.float32))
    assert (np.sign(stored.scale) == np.sign(codes.scale.numpy())).all()
    assert np.array_equal(
        Codes.of_stored(stored, weight.format).numbers().numpy(), weight.numbers().detach().numpy()
    )


def test_layers_of_one_weight_move_as_one() -> None:
    """Their gradients add up, and both hold what comes out."""
    rows, both = torch.randn(4, 3), [nn.Linear(3, 4, bias=False) for _ in range(2)]
    tensor_format = Precision.parse("w4").weight
    codes = Codes.of(
        rows, tensor_format, weight_grid(rows, tensor_format, RANGE_METHODS.build("mse"))
    )
    weight = TunedWeight(["a", "b"], both, rows, codes, OWN, True)
    weight.fill()
    for layer, factor in zip(both, (1.0, 2.0), strict=True):
        (layer.weight * factor).sum().backward()

    weight.backward()

    assert weight.latent is not None
    assert weight.latent.latent.grad is not None
    torch.testing.assert_close(
        weight.latent.latent.grad, 3 * codes.scale.expand(4, 3), rtol=1e-6, atol=0
    )
    with torch.no_grad():
        weight.log_scale.fill_(0.5)
    weight.fill()
    assert torch.equal(both[0].weight, both[1].weight)


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("w4", ""),
        ("wnf4", ""),
        ("fp32", "its weight stays as it came"),
        ("fp16", "fp16 has no scale"),
        ("mxfp4", "scales of mxfp4 are powers of two"),
        ("nvfp4", "scales of nvfp4 are in fp8"),
    ],
)
def test_formats_without_a_scale_say_so(spelling: str, why: str) -> None:
    """Scales that only take powers of two, or fp8, do not move by small steps."""
    assert why_no_scale(Precision.parse(spelling).weight) == why


@pytest.mark.parametrize("spelling", ["fp8", "wnf4", "wternary"])
def test_codes_of_other_formats_stay(spelling: str) -> None:
    """Their levels are not evenly spaced, so that a step of a code means nothing."""
    assert tuned(spelling)[0].latent is None
