"""A forward that writes parameters is refused before it has written the user's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.errors import ModelError


def clamped(model: Any, x: Tensor) -> Tensor:
    """Clips a weight first."""
    with torch.no_grad():
        model.first.weight.clamp_(-0.1, 0.1)
    found: Tensor = model.first(x)
    return found


def past_autograd(model: Any, x: Tensor) -> Tensor:
    """Through ``data``, which has no version."""
    model.first.bias.data.mul_(0.5)
    found: Tensor = model.first(x)
    return found


def looked_up(model: Any, x: Tensor) -> Tensor:
    """Shortens rows of a table, as torch's function does."""
    ids = x.detach().argmax(-1)
    return x + F.embedding(ids, model.table, max_norm=0.1)


class Net(nn.Module):
    """A function before a head."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.table = nn.Parameter(torch.randn(6, 6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(self.function(self, x))
        return found


@pytest.mark.parametrize(
    ("function", "name"),
    [(clamped, "first.weight"), (past_autograd, "first.bias"), (looked_up, "table")],
)
def test_written_parameter_is_named_and_left_as_found(
    function: Callable[[Any, Tensor], Tensor], name: str
) -> None:
    """Our copy shares its memory, so that the refusal has to come before the write."""
    torch.manual_seed(0)
    model = Net(function).eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    with pytest.raises(ModelError, match=f"writes its parameter '{name}' in every forward pass"):
        mpq.find_layers(model, [torch.randn(4, 6)])

    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
