"""A layer whose weight a function uses as well: one weight, two layers, or a sentence."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import ESTIMATORS
from mpq.sensitivity.estimation import Estimation

V, D, T, N = 23, 12, 5, 8  # tokens, width, positions, examples

HEADS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "linear": lambda h, layer: F.linear(h, layer.weight),
    "product": lambda h, layer: h @ layer.weight.t(),
    "einsum": lambda h, layer: torch.einsum("btd,vd->btv", h, layer.weight),
}


class Scaled(nn.Embedding):
    """With a forward of its own."""

    def forward(self, ids: Tensor) -> Tensor:
        """Three times the rows."""
        return super().forward(ids) * 3


class Tied(nn.Module):
    """A language model whose head is a function, or, with modules, the same network."""

    def __init__(self, head: Callable[[Tensor, Any], Tensor], kind: type[nn.Embedding]) -> None:
        super().__init__()
        self.embed = kind(V, D)
        self.body = nn.Linear(D, D)
        self.head = head

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[N, T, V]``."""
        h = self.embed(ids)
        return self.head(self.body(h).relu() + h, self.embed)


class Modular(Tied):
    """The head is a module that shares the weight."""

    def __init__(self, like: Tied) -> None:
        super().__init__(lambda h, _: self.lm_head(h), type(like.embed))
        self.embed, self.body = like.embed, like.body
        self.lm_head = nn.Linear(D, V, bias=False)
        self.lm_head.weight = self.embed.weight


def token_ids() -> list[Tensor]:
    """Two batches."""
    torch.manual_seed(0)
    return [torch.randint(0, V, (N, T)) for _ in range(2)]


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_functional_head_has_the_numbers_of_a_tied_module(
    head: Callable[[Tensor, Any], Tensor], kind: type[nn.Embedding]
) -> None:
    """Every estimator's table, ties and bytes are those of the network written with a module."""
    data = token_ids()
    model = Tied(head, kind).eval()
    candidates = [Precision.parse(text) for text in ("w3a8d", "w8a8d")]

    networks = [Network.of(m, data) for m in (model, Modular(model).eval())]

    assert [x.name for x in networks[0].layers] == ["embed", "body", "embed.linear"]
    assert networks[0].ties == (("embed", "embed.linear"),)
    assert networks[0].reach.also_used == ()
    assert networks[0].coverage == networks[1].coverage
    assert networks[0].num_unquantized == networks[1].num_unquantized
    for name in ("sketch", "measured", "fisher", "weight-error", "hessian-trace"):
        first, second = (
            ESTIMATORS.build(name)
            .estimate(
                Estimation(n, Calibration.of(data), Quantizer(ActivationRanges({})), candidates)
            )
            .table.values
            for n in networks
        )
        assert first == pytest.approx(second, rel=1e-3, abs=1e-9), name


def test_a_quantized_tied_head_uses_the_quantized_weight_in_both_places() -> None:
    """Found in a search, quantized again from JSON, saved and loaded under the model's names."""
    data = token_ids()
    model = Tied(HEADS["linear"], nn.Embedding).eval()
    result = mpq.search(
        mpq.Task(model, data, candidates=("w3a8d", "w8a8d")), {"weight_bytes": "0.7x:w8a8d"}
    )
    assignment = mpq.Assignment.from_json(result.assignment.to_json())

    quantized = mpq.quantize(model, assignment)

    state = quantized.state_dict()
    plain = copy.deepcopy(model)
    plain.load_state_dict(state)
    found = {str(p) for n, p in assignment.precisions.items() if n.startswith("embed")}
    assert set(state) == set(model.state_dict())
    assert len(found) == 1
    assert torch.equal(quantized.get_parameter("embed.weight"), state["embed.weight"])
    assert not torch.equal(state["embed.weight"], model.embed.weight)
    # Inputs are rounded, too, in the one and not in the other.
    assert torch.allclose(plain(data[0]), quantized(data[0]), atol=0.1, rtol=0.1)
    quantized.load_state_dict(model.state_dict())
    assert torch.allclose(quantized(data[0]), model(data[0]), atol=0.1, rtol=0.1)


OTHERS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "scaled": lambda h, layer: F.linear(h, layer.weight * 0.3),
    "of its own kind": lambda h, layer: h + F.embedding(torch.arange(T), layer.weight),
    "in two ways": lambda h, layer: F.linear(h, layer.weight) / layer.weight.norm(),
    "a number": lambda h, layer: h / layer.weight.norm(),
}


@pytest.mark.parametrize("head", OTHERS.values(), ids=OTHERS)
def test_any_other_use_is_named_and_measured(head: Callable[[Tensor, Any], Tensor]) -> None:
    """Gradients of the calls say nothing of it: a sentence, and ``auto`` measures that row."""
    data = token_ids()
    model = Tied(head, nn.Embedding).eval()

    task = mpq.Task(model, data, candidates=("w3a8d", "w8a8d"))
    result = mpq.search(task, {"weight_bytes": "0.7x:w8a8d"})

    assert [x.name for x in result.layers] == ["embed", "body"]
    assert result.provenance.reach.also_used == ("embed",)
    assert any("besides their calls" in s for s in result.provenance.reach.sentences())
    assert result.spot_check is not None
    assert "embed" in result.spot_check.repaired


def test_asking_for_a_type_or_a_view_is_no_use() -> None:
    """What models ask of a weight besides computing with it is not reported."""

    def head(h: Tensor, layer: Any) -> Tensor:
        weight = layer.weight.t()
        assert weight.requires_grad is not None
        found: Tensor = h.to(layer.weight.dtype).to(weight.device) + weight.new_zeros(1)
        return found

    network = Network.of(Tied(head, nn.Embedding).eval(), token_ids())

    assert network.reach.also_used == ()


class Folding(nn.Module):
    """A convolution before a BatchNorm, whose weight a function reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.norm.register_buffer("running_var", torch.full((3,), 4.0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 3]``."""
        h = self.norm(self.conv(x)).relu()
        return F.conv2d(h, self.conv.weight).mean((2, 3))


def test_a_convolution_that_a_function_reads_is_not_folded() -> None:
    """The function would get the folded weight."""
    torch.manual_seed(0)
    model, x = Folding().eval(), torch.randn(4, 3, 6, 6)

    network = Network.of(model, [x])

    assert network.folded == {}
    assert network.reach.also_used == ("conv",)
    assert torch.equal(network.module(x), model(x))
