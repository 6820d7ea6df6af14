"""Least-squares ranges, coarse to fine: as good as forty equal steps."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.grid import make_grid
from mpq.quantization.loss_range import LossWeighted
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import LeastSquares
from mpq.quantization.rounding import quantize_rows, weight_grid
from mpq.quantization.tensor_format import TensorFormat

SPELLINGS = (
    *(f"w{bits}" for bits in range(2, 9)),
    *("w2g64", "w3g128", "w4g32", "w5g128", "w6g64", "w8g128", "w4t", "w8t"),
    *("w2z", "w3zg64", "w4z", "w6zg128", "w8z", "w2zf", "w4zfg64"),
    *("wfp8", "wfp4_e2m1", "wnf3", "wnf4", "wnvfp4", "we3m2"),
)


def distributions() -> dict[str, Tensor]:
    """``[O, K]`` each: those of trained weights lie between them."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(128, 512, generator=generator)
    uniform = torch.rand(128, 512, generator=generator) - 0.5
    is_outlier = torch.rand(128, 512, generator=generator) < 0.002
    return {
        "normal": normal,
        "uniform": uniform,
        "laplace": -uniform.sign() * torch.log1p(-2 * uniform.abs()),
        "outliers": torch.where(is_outlier, 20 * normal, normal),
        "cubed": normal**3,
        "shifted": normal + 1.5,
        "half zeros": normal.clamp(min=0),
    }


def squared_error(rows: Tensor, wanted: TensorFormat, method: LeastSquares) -> float:
    """Of the weight as it is stored."""
    rounded = quantize_rows(rows, wanted, weight_grid(rows, wanted, method))
    return float((rounded.double() - rows.double()).square().sum())


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_coarse_to_fine_is_as_good_as_forty_ranges(spelling: str) -> None:
    """Of no distribution is the squared error half a percent larger; in the mean it is smaller."""
    wanted = Precision.parse(spelling).weight

    ratios = [
        squared_error(rows, wanted, LeastSquares())
        / squared_error(rows, wanted, LeastSquares(40, num_halvings=0))
        for rows in distributions().values()
    ]

    assert max(ratios) <= 1.005
    assert sum(ratios) / len(ratios) <= 1.0005


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["int3", "int8", "fp8_e4m3"])
def test_a_halving_never_raises_the_error(name: str, symmetric: bool) -> None:
    """Row by row, whatever was best so far stays where both neighbours are worse."""
    number, rows = NUMBER_FORMATS[name], distributions()["cubed"]
    symmetric = symmetric or number.is_float
    errors = []
    for num_halvings in range(5):
        low, high = LeastSquares(6, num_halvings=num_halvings).ends(rows, number, symmetric)
        errors.append(row_errors(rows, low, high, name, symmetric))

    assert all(bool((b <= a * (1 + 1e-6)).all()) for a, b in pairwise(errors))
    assert float(errors[-1].sum()) < float(errors[0].sum())


def row_errors(rows: Tensor, low: Tensor, high: Tensor, name: str, symmetric: bool) -> Tensor:
    """``[O]`` squared errors on the grids of given ends."""
    rounded = make_grid(NUMBER_FORMATS[name], symmetric, low, high).round(rows)
    return (rounded.double() - rows.double()).square().sum(dim=1)


def test_halvings_go_half_as_far_each_time() -> None:
    """From 1, 0.6 and 0.2 by fifths and tenths, never beyond the full range."""
    rows = torch.tensor([[-1.0, -0.3, 0.1, 1.0]])

    _, found = LeastSquares(3, num_halvings=2).ends(rows, NUMBER_FORMATS["int4"], True)

    def error(share: float) -> float:
        end = torch.tensor([share])
        return float(row_errors(rows, -end, end, "int4", True))

    best = min((1.0, 0.6, 0.2), key=error)
    for step in (0.2, 0.1):
        best = min((best, min(best + step, 1.0), max(best - step, 0.2)), key=error)
    assert float(found) == pytest.approx(best, rel=1e-6)


def test_powers_of_two_have_nothing_between_them() -> None:
    """Halvings are for scales that may be anything."""
    rows, wanted = distributions()["cubed"], Precision.parse("wmxfp4").weight

    none, some = (LeastSquares(num_halvings=h).ends(rows, wanted.number, True) for h in (0, 3))

    assert all(torch.equal(a, b) for a, b in zip(none, some, strict=True))


def test_weighted_errors_are_searched_in_the_same_way() -> None:
    """Where all count alike, ``loss`` is ``mse`` also between the equal steps."""
    rows, number = distributions()["outliers"], NUMBER_FORMATS["int6"]

    found = LossWeighted().weighted_ends(rows, torch.ones_like(rows), number, False)

    expected = LeastSquares().ends(rows, number, False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
