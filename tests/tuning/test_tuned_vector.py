"""Biases and norms of a quantized network, and where they lie in the user's model."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends.simulate import prepared
from mpq.network.modules import share_parameters
from mpq.network.tuned_parameters import TunedParameter, TunedParameters
from mpq.network.with_tuned import with_tuned
from mpq.tuning.tuned_vector import Place, TunedVector, tuned_parameters, tuned_vectors
from tests.workflows.networks import Net, batches


class Attending(nn.Module):
    """Attention, whose three biases are one parameter, a norm, and a norm without numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.plain(self.norm(x + self.attention(x, x, x)[0])).mean(1))
        return found


def made(model: nn.Module, data: list[Tensor]) -> tuple[nn.Module, list[TunedVector], nn.Module]:
    """The user's model without wrappers, its vectors, and the network that holds them."""
    task = mpq.Task(model, data, rounding="nearest", candidates=["w8"])
    result = mpq.search(task, {"effective_bits": 12}, sensitivity="weight-error")
    own, precisions = share_parameters(model), result.assignment.precisions
    module = prepared(own, result.assignment)
    return own, tuned_vectors(module, own, list(precisions), result.assignment.folded)[0], module


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    nn.init.uniform_(model.norm.weight, 0.5, 2.0)
    nn.init.normal_(model.norm.bias)
    return model


def test_a_folded_bias_is_the_batch_norms(net: nn.Module) -> None:
    """Moved by so much, the model's own BatchNorm gives the network's own outputs."""
    x = batches(1)[0]
    own, vectors, module = made(net, batches(4))
    folded = next(v for v in vectors if v.place.parameter == "norm.bias")
    with torch.no_grad():
        folded.moved.normal_(generator=torch.Generator().manual_seed(3))
    folded.fill()

    tuned = tuned_parameters(vectors, own, None)

    assert tuned is not None
    assert list(tuned.by_name) == ["norm.bias"]
    with torch.no_grad():
        torch.testing.assert_close(module(x), with_tuned(net, tuned)(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(module(x), net(x), atol=1e-2)


def test_what_is_tuned_is_called_as_in_the_model(net: nn.Module) -> None:
    """Weights of layers and a folded BatchNorm's own weight are none of it."""
    _, vectors, _ = made(net, batches(4))

    names = {vector.place.parameter for vector in vectors}
    assert names == {"norm.bias", "grouped.bias", "hidden.bias", "head.bias"}


def test_a_layer_that_was_left_out_keeps_its_bias(net: nn.Module) -> None:
    """``exclude`` says that it stays as it is."""
    rules = mpq.Rules(exclude=["hidden"])
    task = mpq.Task(net, batches(4), rounding="nearest", candidates=["w8"], rules=rules)
    result = mpq.search(task, {"effective_bits": 12}, sensitivity="weight-error")
    own, assignment = share_parameters(net), result.assignment

    vectors, left = tuned_vectors(
        prepared(own, assignment), own, list(assignment.precisions), assignment.folded
    )

    assert left == {"hidden.bias": "its layer was left out of the search"}
    assert "hidden.bias" not in {vector.place.parameter for vector in vectors}


def test_parts_of_a_vector_come_back_as_one() -> None:
    """The bias of three projections is one parameter in the user's model."""
    torch.manual_seed(0)
    model = Attending().eval()
    nn.init.normal_(model.attention.in_proj_bias)
    x = torch.randn(16, 4, 8)
    own, vectors, module = made(model, [x])
    for vector in vectors:
        with torch.no_grad():
            vector.moved.normal_(generator=torch.Generator().manual_seed(3))
        vector.fill()

    tuned = tuned_parameters(vectors, own, None)

    assert tuned is not None
    assert set(tuned.by_name) == {
        "attention.in_proj_bias", "attention.out_proj.bias", "norm.weight", "norm.bias", "head.bias"
    }  # fmt: skip
    assert len(tuned.by_name["attention.in_proj_bias"].tuned) == 24
    with torch.no_grad():
        torch.testing.assert_close(module(x), with_tuned(model, tuned)(x), rtol=1e-4, atol=1e-5)


def test_the_users_memory_stays(net: nn.Module) -> None:
    """Vectors that move have memory of their own."""
    before = {name: value.clone() for name, value in net.state_dict().items()}
    _, vectors, _ = made(net, batches(4))

    for vector in vectors:
        with torch.no_grad():
            vector.moved.fill_(1.0)
        vector.fill()

    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_gradient_is_in_units_of_the_vectors_length() -> None:
    """So that one step size suits biases of all sizes."""
    original = torch.tensor([3.0, -4.0])
    leaf = nn.Parameter(original.clone())
    vector = TunedVector(Place("bias", 0, 2), original, [leaf])
    (leaf * torch.tensor([1.0, 2.0])).sum().backward()

    vector.backward()

    assert vector.moved.grad is not None
    unit = (25 / 2) ** 0.5
    assert vector.moved.grad.tolist() == pytest.approx([unit, 2 * unit])


def test_a_second_tuning_goes_on_from_the_first(net: nn.Module) -> None:
    """What it is tuned from is the checkpoint's number still."""
    own, vectors, _ = made(net, batches(4))
    first = own.get_parameter("head.bias").detach().numpy().copy()
    once = TunedParameters({"head.bias": TunedParameter(first - 1, first)})
    vector = next(v for v in vectors if v.place.parameter == "head.bias")
    with torch.no_grad():
        vector.moved.fill_(0.5)

    twice = tuned_parameters(vectors, own, once)

    assert twice is not None
    assert np.array_equal(twice.by_name["head.bias"].original, first - 1)
    assert not np.array_equal(twice.by_name["head.bias"].tuned, first)
