"""What was done to parameters: kept in a file, and done again."""

import numpy as np
import pytest
import torch
from torch import nn

from mpq.errors import FileFormatError, MismatchError
from mpq.network.reparametrization import Change, Floats, Reparametrization
from mpq.network.reparametrized import reparametrized

ROTATION = np.array([[0.6, 0.8], [-0.8, 0.6]], dtype=np.float32)


def floats(*values: float) -> Floats:
    """``[n]`` float32."""
    return np.array(values, dtype=np.float32)


def some() -> Reparametrization:
    """One change of every kind."""
    return Reparametrization(
        ("smooth",),
        (
            Change("0.weight", "scale", 1, floats(2, 0.5, 4)),
            Change("0.weight", "rotate", 0, ROTATION),
            Change("0.bias", "shift", 0, floats(1, 2, 3, 4)),
            Change("1.weight", "unit", 0, floats(0.5, 1, 2, 1)),
        ),
    )


def net() -> nn.Sequential:
    """Parameters that ``some`` fits."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)).eval()
    with torch.no_grad():
        made.get_parameter("1.weight").copy_(torch.tensor([2.0, 1.0, 0.5, 1.0]))
    return made


def test_changes_are_made_in_order() -> None:
    """By hand: columns scaled, pairs of rows rotated, a bias moved, a norm's weight made ones."""
    model = net()
    weight, bias = (model.get_parameter(n).detach().clone() for n in ("0.weight", "0.bias"))

    found = reparametrized(model, some().changes)

    rows = weight * torch.tensor([2.0, 0.5, 4.0])
    by_hand = torch.cat([rows[i : i + 2].T @ torch.from_numpy(ROTATION) for i in (0, 2)], dim=1).T
    torch.testing.assert_close(found.get_parameter("0.weight"), by_hand, check_stride=False)
    torch.testing.assert_close(found.get_parameter("0.bias"), bias + torch.tensor([1.0, 2, 3, 4]))
    assert found.get_parameter("1.weight").tolist() == [1.0] * 4
    assert torch.equal(model.get_parameter("0.weight"), weight)


def test_a_tied_parameter_is_changed_once() -> None:
    """Under both of its names, and stays tied."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    model = nn.Sequential(first, second).eval()
    twice = Change("0.weight", "scale", 0, floats(2, 2, 2))

    found = reparametrized(model, [twice])

    assert found.get_parameter("0.weight") is found.get_parameter("1.weight")
    torch.testing.assert_close(found.get_parameter("1.weight"), 2 * first.weight.detach())


def test_a_file_holds_all_of_it() -> None:
    """Content and statement give the same changes again."""
    made = some()

    found = Reparametrization.from_content(made.content, made.to_dict())

    assert found == made
    assert [(c.parameter, c.kind, c.axis) for c in found.changes] == [
        (c.parameter, c.kind, c.axis) for c in made.changes
    ]
    assert all(
        np.array_equal(a.values, b.values) for a, b in zip(found.changes, made.changes, strict=True)
    )


def test_another_file_is_refused() -> None:
    """Its SHA-256 is another."""
    other = Reparametrization(("smooth",), some().changes[:1])

    with pytest.raises(FileFormatError, match="SHA-256 is another"):
        Reparametrization.from_content(other.content, some().to_dict())


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)), "has 5 entries along axis 1, not 3"),
        (nn.Sequential(nn.Linear(3, 4)), "lacks the parameter '1.weight'"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), "another checkpoint"),
    ],
    ids=["shape", "missing", "checkpoint"],
)
def test_another_network_is_refused(model: nn.Module, why: str) -> None:
    """By names, by shapes, and where a norm's weight does not become ones."""
    with pytest.raises(MismatchError, match=why):
        reparametrized(model.eval(), some().changes)
