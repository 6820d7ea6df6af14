"""Number formats of every kind as candidates of one search."""

from pathlib import Path

import pytest
import torch
from torch import nn

import mpq
from mpq.quantization.precision import Precision
from mpq.solvers import SOLVERS
from mpq.solvers.queries.solve import solve

INTEGERS = [f"w{bits}g32" for bits in range(2, 8)]
OTHERS = [
    "wbinaryg32", "wternaryg32", "wnf3g32", "wnf4g32", "we2m0g32", "we2m1g32", "we2m2g32",
    "we3m2g32", "w9g32", "mxfp4", "mxfp6_e2m3", "mxint8", "nvfp4", "wcb2", "wcb3", "wnf4g32sdq",
    "w4zfg32", "w4g32sfp8", "w3g32sbf16", "w5sdyadic8",
]  # fmt: skip
ROUNDINGS = ["nearest", "gptq", "coordinate-descent"]


def network() -> nn.Module:
    """Three layers, the last of few outputs."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)
    ).eval()


def data() -> list[torch.Tensor]:
    """Two batches."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_more_formats_never_cost_more_loss_at_equal_bytes(rounding: str) -> None:
    """Predicted, by what every layer loses alone, which does not depend on the other candidates."""

    def losses(candidates: list[str]) -> list[float]:
        task = mpq.Task(network(), data(), candidates=candidates, rounding=rounding)
        problem = mpq.search(task, ["weight_bytes=3KB"], sensitivity="measured").problem
        budgets = [f"weight_bytes={kilobytes}KB" for kilobytes in (3, 3.5, 4, 4.5, 5, 6)]
        return [solve(SOLVERS.build("ilp"), problem.within([limit])).loss for limit in budgets]

    integers, all_of_them = losses(INTEGERS), losses([*INTEGERS, *OTHERS])

    assert all(more <= fewer for fewer, more in zip(integers, all_of_them, strict=True))
    assert sum(all_of_them) < sum(integers)


def measured(candidates: list[str], kilobytes: float) -> float:
    """What the answer of a whole search loses on its calibration examples, as measured."""
    task = mpq.Task(network(), data(), candidates=candidates, rounding="nearest")
    result = mpq.search(task, [f"weight_bytes={kilobytes}KB"], sensitivity="measured")
    assert result.safeguard is not None
    found = mpq.quantize(network(), result.assignment)
    with torch.no_grad():
        pairs = [(network()(x), found(x)) for x in data()]
    logs = [(a.log_softmax(dim=1), b.log_softmax(dim=1)) for a, b in pairs]
    return float(torch.stack([(a.exp() * (a - b)).sum(dim=1).mean() for a, b in logs]).mean())


@pytest.mark.parametrize("kilobytes", [3, 4, 5])
def test_more_formats_do_not_measure_worse(kilobytes: float) -> None:
    """At equal bytes, with the safeguard against uniform precisions, of a network of three layers.

    What is measured of all layers at once is no sum of what each loses alone, so that the last
    digits are nobody's promise.
    """
    integers = measured(INTEGERS, kilobytes)

    assert measured([*INTEGERS, *OTHERS], kilobytes) <= 1.02 * integers


@pytest.mark.parametrize("spelling", [*OTHERS, "wbinary", "we6m1t", "w12z"])
def test_a_result_is_what_was_saved(spelling: str, tmp_path: Path) -> None:
    """Every format, with the codes that a rounding found: read again, the same outputs."""
    task = mpq.Task(network(), data(), candidates=[spelling], rounding="coordinate-descent")
    result = mpq.search(task, [f"weight_bytes=1x:{spelling}"], sensitivity="weight-error")
    result.save(tmp_path)

    again = mpq.load(tmp_path).assignment

    assert again == result.assignment
    assert set(again.precisions.values()) == {Precision.parse(spelling)}
    with torch.no_grad():
        mine, theirs = (mpq.quantize(network(), a)(data()[0]) for a in (result.assignment, again))
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, network()(data()[0]))
