"""Layers that read one thing without an axis of examples: a start vector, one picture, one id."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import ESTIMATORS

EXAMPLES = 8


class Single(nn.Module):
    """Everything but ``a`` and ``head`` reads what is no example; sizes are those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.picture = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(2, 4, 4))
        self.latent, self.conv = nn.Linear(8, 8), nn.Conv2d(2, 2, 3, padding=1)
        self.flat, self.table = nn.Linear(32, 8), nn.Embedding(3, 8)
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        shared = self.latent(self.start) + self.flat(self.conv(self.picture).flatten())
        h = torch.relu(self.a(x) + shared + self.table(torch.tensor(1)))
        found: Tensor = self.head(h)
        return found


def table(estimator: str) -> mpq.CostTable:
    """Losses of all layers."""
    torch.manual_seed(0)
    model, data = Single().eval(), [torch.randn(EXAMPLES, 6) for _ in range(6)]
    task = mpq.Task(model, data, data, candidates=["w3", "w4a4", "w8"])
    found = mpq.search(task, {"effective_bits": "0.9x:w8"}, sensitivity=estimator)
    return found.problem.loss


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_every_estimator_reads_them(name: str) -> None:
    """No shape is taken for another one, and every layer loses something."""
    assert (table(name).values[:, 0] > 0).all()


@pytest.mark.parametrize("name", ["sketch:num_probes=16", "hessian-form"])
def test_what_they_lose_is_about_what_is_measured(name: str) -> None:
    """All examples share the change, so that their gradients add up before they are squared."""
    ratio = table(name).values[:, :2] / table("measured").values[:, :2]

    assert np.all((ratio > 0.4) & (ratio < 2.5)), ratio
