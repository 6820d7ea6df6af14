"""What was done to parameters: kept in a file, and done again."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import FileFormatError, MismatchError
from mpq.network.reparametrization import Floats, Reparametrization, Scaling
from mpq.network.reparametrized import reparametrized


def floats(*values: float) -> Floats:
    """``[n]`` float32."""
    return np.array(values, dtype=np.float32)


def some() -> Reparametrization:
    """Both axes of a weight, one of them twice, and a bias."""
    return Reparametrization(
        ("smooth",),
        (
            Scaling("0.weight", 1, floats(2, 0.5, 4)),
            Scaling("0.weight", 0, floats(1, 2, 3, 4)),
            Scaling("0.weight", 1, floats(1, 4, 1)),
            Scaling("0.bias", 0, floats(1, 2, 3, 4)),
        ),
    )


def test_changes_are_products() -> None:
    """By hand: rows and columns scaled; the model itself stays."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4)).eval()
    weight, bias = (model.get_parameter(n).detach().clone() for n in ("0.weight", "0.bias"))

    found = reparametrized(model, some().changes)

    rows = torch.tensor([1.0, 2.0, 3.0, 4.0])
    by_hand = rows[:, None] * weight * torch.tensor([2.0, 2.0, 4.0])
    torch.testing.assert_close(found.get_parameter("0.weight"), by_hand)
    torch.testing.assert_close(found.get_parameter("0.bias"), rows * bias)
    assert torch.equal(model.get_parameter("0.weight"), weight)


def test_a_tied_parameter_is_changed_once() -> None:
    """Under both of its names, and stays tied."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second).eval()
    twice = Scaling("0.weight", 0, floats(2, 2, 2))

    found = reparametrized(model, [twice])

    assert found.get_parameter("0.weight") is found.get_parameter("1.weight")
    torch.testing.assert_close(found.get_parameter("1.weight"), 2 * first.weight.detach())


def test_a_file_holds_all_of_it() -> None:
    """Content and statement give the same changes again."""
    made = some()

    found = Reparametrization.from_content(made.content, made.to_dict())

    assert found == made
    assert [(c.parameter, c.axis) for c in found.changes] == [
        (c.parameter, c.axis) for c in made.changes
    ]
    assert all(
        np.array_equal(a.factors, b.factors)
        for a, b in zip(found.changes, made.changes, strict=True)
    )


def test_another_file_is_refused() -> None:
    """Its SHA-256 is another."""
    other = Reparametrization(("smooth",), some().changes[:1])

    with pytest.raises(FileFormatError, match="SHA-256 is another"):
        Reparametrization.from_content(other.content, some().to_dict())


def test_numbers_that_are_no_factors_are_refused() -> None:
    """A factor of 0 would be another network."""
    made = Reparametrization(("smooth",), (Scaling("0.weight", 0, floats(1, 0)),))

    with pytest.raises(FileFormatError, match="no vector of float32 numbers other than 0"):
        Reparametrization.from_content(made.content, made.to_dict())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(5, 4)), "has 5 entries along axis 1, not 3"),
        (nn.Sequential(nn.Conv1d(3, 4, 1, bias=False)), "lacks the parameter '0.bias'"),
    ],
    ids=["shape", "missing"],
)
def test_another_network_is_refused(model: nn.Module, why: str) -> None:
    """By the names and the shapes of its parameters."""
    with pytest.raises(MismatchError, match=why):
        reparametrized(model.eval(), some().changes)
