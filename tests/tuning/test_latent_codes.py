"""Codes that move, stay within their format, and are frozen where they swing to and fro."""

import pytest
import torch
from torch import Tensor

from mpq.tuning.latent_codes import MOMENTUM, OFTEN, LatentCodes


def latent(codes: list[float], places: list[float], low: int = -4, high: int = 3) -> LatentCodes:
    ends = torch.tensor([float(low)]), torch.tensor([float(high)])
    return LatentCodes(torch.tensor([codes]).float(), torch.tensor([places]), ends)


def set_to(codes: LatentCodes, values: list[float]) -> None:
    """What a step of the optimizer does."""
    with torch.no_grad():
        codes.latent.copy_(torch.tensor([values]))
    codes.after_step()


def test_a_code_starts_where_its_weight_lies() -> None:
    """Within half a step of the rounding's answer, whatever that is; and rounds to it."""
    found = latent([1, 1, -2, 3, -4], [1.2, 7.0, -3.0, 3.4, -4.3])

    assert found.latent.tolist() == [pytest.approx([1.2, 1.49, -2.49, 3.0, -4.0])]
    assert found.codes().tolist() == [[1, 1, -2, 3, -4]]


def test_codes_stay_in_the_format() -> None:
    """Beyond its ends a gradient says nothing, and a code would be lost there."""
    found = latent([3, -4], [3.0, -4.0])

    set_to(found, [9.0, -9.0])

    assert found.latent.tolist() == [[3, -4]]


def reference(path: list[float]) -> tuple[list[int], int | None]:
    """Nagel et al.'s algorithm 1 for one weight, in plain Python: codes, and when it was frozen."""
    before, mean, often, direction, frozen = 0, 0.0, 0.0, 0, None
    codes: list[int] = []
    for step, value in enumerate(path):
        if frozen is not None:
            codes.append(codes[-1])
            continue
        code = round(value)
        moved = (code > before) - (code < before)
        often += MOMENTUM * (float(moved * direction < 0) - often)
        mean += MOMENTUM * (code - mean)
        direction = moved or direction
        if often > OFTEN:
            code, frozen = round(mean), step
        codes.append(code)
        before = code
    return codes, frozen


@pytest.mark.parametrize(
    "path",
    [
        [0.4, 0.6, 0.4, 0.6, 0.4, 0.6, 0.4],
        [0.1 * step for step in range(30)],
        [0.6, 0.4] + [0.4] * 300 + [0.6, 0.4, 0.6],
        [0.6] * 90 + [0.4] + [0.6] * 9 + [0.4, 0.6, 0.4, 0.6],
        [1.6, -1.6, 1.6, -1.6, 1.6],
    ],
    ids=["swings", "rises", "rarely", "late", "far"],
)
def test_frozen_codes_are_those_of_the_paper(path: list[float]) -> None:
    """A weight that turns back often is left at its mean code; others go where they are sent."""
    found = latent([0.0], [0.0])
    expected, when = reference(path)
    seen, frozen = [], None
    for step, value in enumerate(path):
        set_to(found, [value])
        seen.append(int(found.codes().item()))
        if bool(found.is_frozen) and frozen is None:
            frozen = step

    assert seen == expected
    assert frozen == when


def test_some_paths_freeze_and_some_do_not() -> None:
    """So that the test above speaks of both."""
    assert reference([0.6, 0.4] * 4)[1] == 2
    assert reference([0.1 * step for step in range(30)])[1] is None


def test_tensors_are_all_that_there_is() -> None:
    """A copy that is given them goes on alike."""
    one, other = latent([0.0, 1.0], [0.1, 1.1]), latent([0.0, 1.0], [0.1, 1.1])
    for values in ([0.6, 1.0], [0.4, 1.6]):
        set_to(one, values)
    kept: dict[str, Tensor] = {name: t.clone() for name, t in one.tensors().items()}

    with torch.no_grad():
        for name, tensor in other.tensors().items():
            tensor.copy_(kept[name])
    for found in (one, other):
        for values in ([0.6, 1.6], [0.4, 1.4], [0.6, 1.6]):
            set_to(found, values)

    assert all(torch.equal(t, other.tensors()[name]) for name, t in one.tensors().items())
    assert bool(one.is_frozen.any())
