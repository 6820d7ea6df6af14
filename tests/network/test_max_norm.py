"""Tables whose forward shortens rows: our copy holds them short, the user's stay as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.network.network import Network


class Looked(nn.Module):
    """A table with ``max_norm``, and a head that may share it."""

    def __init__(self, kind: Any, is_tied: bool) -> None:
        super().__init__()
        self.table, self.head = kind(9, 6, max_norm=1.0), nn.Linear(6, 9)
        if is_tied:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of nine classes."""
        out: Tensor = self.head(self.table(ids))
        return out


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_search_leaves_the_table_as_found(kind: Any, is_tied: bool) -> None:
    """Though every forward pass writes it; what it says is the same."""
    torch.manual_seed(0)
    model = Looked(kind, is_tied).eval()
    before = model.table.weight.detach().clone()
    data = [torch.randint(0, 5, (4, 3)), torch.randint(5, 9, (4, 3))]
    task = mpq.Task(model, data, data, candidates=["w2", "fp32"])

    result = mpq.search(task, {"weight_bytes": "1x:fp32"})
    quantized = mpq.quantize(model, result.assignment)
    found = quantized(data[0])

    assert torch.equal(model.table.weight, before)
    assert model.table.max_norm == 1.0
    torch.testing.assert_close(found, model(data[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_table_is_a_layer_of_short_rows_and_covered(kind: Any) -> None:
    """What is quantized is what the forward reads, and it is counted once."""
    torch.manual_seed(0)
    model = Looked(kind, False).eval()

    network = Network.of(model, [torch.randint(0, 9, (4, 3))])

    assert network.coverage is not None
    assert network.coverage.weights_outside == ()
    assert float(network.weight(network.layers[0].name).norm(dim=1).max()) <= 1.0 + 1e-6
