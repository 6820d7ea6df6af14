"""What was done to parameters: kept in a file, and done again."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import FileFormatError, MismatchError
from mpq.network.reparametrization import (
    Addition,
    Change,
    Floats,
    Orthogonal,
    Reparametrization,
    Rotation,
    Scaling,
    Untying,
)
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
    assert found.content == made.content


def rotations() -> Reparametrization:
    """Rotations that share a matrix of signs, one of its own, terms, and a head that is untied."""
    signs = Orthogonal(np.array([[1, 1], [1, -1]], dtype=np.int8))
    other = Orthogonal(np.array([[0.6, 0.8], [-0.8, 0.6]]))
    return Reparametrization(
        ("rotate",),
        (
            Untying("1.weight"),
            Addition("0.bias", 0, np.array([0.1, 0.2, 0.3, 0.4])),
            Rotation("0.weight", 0, 1, 1, signs),
            Rotation("0.weight", 1, 0, 2, other),
            Rotation("0.bias", 0, 0, 2, signs),
        ),
    )


def test_rotations_are_products_of_blocks() -> None:
    """By hand, with a block-diagonal matrix; the numbers around the blocks stay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    weight, bias = (model.get_parameter(n).detach().double() for n in ("0.weight", "0.bias"))

    found = reparametrized(model, rotations().changes)

    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.double) / 2**0.5
    other = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.double)
    one = torch.eye(1, dtype=torch.double)
    by_hand = torch.block_diag(one, signs, one).T @ weight @ torch.block_diag(other, other)
    torch.testing.assert_close(found.get_parameter("0.weight"), by_hand.float())
    turned = (bias + torch.tensor([0.1, 0.2, 0.3, 0.4])) @ torch.block_diag(signs, signs)
    torch.testing.assert_close(found.get_parameter("0.bias"), turned.float())


def test_a_file_holds_rotations() -> None:
    """Signs as bytes, once; the same parameters to the bit, in the file's order."""
    made, model = rotations(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()

    found = Reparametrization.from_content(made.content, made.to_dict())

    assert found == made
    assert [type(c) for c in found.changes] == [type(c) for c in made.changes]
    assert made.content.count(b"matrix") == 2
    pairs = zip(
        *(reparametrized(model, r.changes).parameters() for r in (made, found)), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_untied_parameter_has_numbers_of_its_own() -> None:
    """The other one stays as it is, and so does the user's model."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).eval()
    model[1].weight = model[0].weight
    twice = Scaling("1.weight", 0, floats(2, 2, 2))

    found = reparametrized(model, [Untying("1.weight"), twice])

    weight = model.get_parameter("0.weight").detach()
    torch.testing.assert_close(found.get_parameter("0.weight").detach(), weight)
    torch.testing.assert_close(found.get_parameter("1.weight").detach(), 2 * weight)
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (Rotation("0.weight", 0, 0, 1, Orthogonal(np.ones((2, 3)))), "no square matrix"),
        (Rotation("0.weight", 0, 0, 1, Orthogonal(np.full((2, 2), np.nan))), "no square matrix"),
        (Rotation("0.weight", 0, -1, 1, Orthogonal(np.eye(2))), "names no matrix"),
        (Addition("0.bias", 0, np.array([np.inf])), "no vector of float64"),
    ],
    ids=["shape", "numbers", "place", "terms"],
)
def test_numbers_that_are_no_rotation_are_refused(change: Change, why: str) -> None:
    """They would be another network."""
    made = Reparametrization(("rotate",), (change,))

    with pytest.raises(FileFormatError, match=why):
        Reparametrization.from_content(made.content, made.to_dict())


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
