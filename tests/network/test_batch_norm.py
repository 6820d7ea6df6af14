"""BatchNorm folded into the layer before it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn import functional as F

from mpq.network.batch_norm import fold_batch_norm
from mpq.network.network import Network


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trained(norm: Any) -> Any:
    """A BatchNorm with statistics and parameters as training leaves them, some scales negative."""
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 3.0)
        if norm.affine:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm


class Block(nn.Module):
    """A layer, its BatchNorm, and a function that joins them."""

    def __init__(self, forward: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self, x)
        return y.flatten(2).mean(dim=2) if y.ndim > 2 else y


def conv_norm(**changes: nn.Module) -> dict[str, nn.Module]:
    """Parts of a small block, three channels wide."""
    parts: dict[str, nn.Module] = {
        "conv": nn.Conv2d(3, 3, 3, padding=1),
        "norm": trained(nn.BatchNorm2d(3)),
    }
    return parts | changes


PAIRS = [
    (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (4, 9)),
    (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 7, 7)),
    (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False), (4, 7, 7)),
    (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, eps=0.1), (4, 7, 7)),
    (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), nn.BatchNorm1d(6), (4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (4, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (4, 5, 5)),
    (nn.Linear(4, 6), nn.BatchNorm1d(6), (4,)),
    (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (4,)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS, ids=str)
def test_folded_network_says_the_same(
    layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]
) -> None:
    """The BatchNorm is gone and the outputs are the same, whatever the layer."""
    model = Block(lambda m, x: m.norm(m.conv(x)), conv=layer, norm=trained(norm)).eval()
    x = torch.randn(5, *shape)

    network = Network.of(model, [x])

    assert dict(network.folded) == {"conv": "norm"}
    assert isinstance(network.layer_module("norm"), nn.Identity)
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x), atol=1e-5, rtol=1e-5)


def test_fold_equals_the_formula() -> None:
    """``w g / s`` and ``(b - m) g / s + beta``, one output channel at a time."""
    model = Block(lambda m, x: m.norm(m.conv(x)), **conv_norm()).eval()
    conv, norm = (model.get_submodule(name) for name in ("conv", "norm"))
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert conv.bias is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = conv.weight.detach().clone(), conv.bias.detach().clone()
    spread = (norm.running_var + norm.eps).sqrt()
    gain = [norm.weight[c].detach() / spread[c] for c in range(3)]

    fold_batch_norm(model, {"conv": "norm"})

    for c in range(3):
        torch.testing.assert_close(conv.weight[c], weight[c] * gain[c])
        shifted = (bias[c] - norm.running_mean[c]) * gain[c] + norm.bias[c].detach()
        torch.testing.assert_close(conv.bias[c], shifted)


def test_nothing_is_folded_on_request() -> None:
    """``fold=False`` leaves the BatchNorm."""
    model = Block(lambda m, x: m.norm(m.conv(x)), **conv_norm()).eval()

    network = Network.of(model, [torch.randn(2, 3, 5, 5)], fold=False)

    assert dict(network.folded) == {}
    assert isinstance(network.layer_module("norm"), nn.BatchNorm2d)


def read_elsewhere(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.add(m.norm(y), y)


def read_before(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    gate = y.sigmoid()
    return torch.mul(m.norm(y), gate)


def read_as_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.add(m.norm(y), y[:, :1])


def read_through_data(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.add(m.norm(y), y.data)


def read_in_a_list(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.cat([m.norm(y), y], dim=1)


def changed_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    F.relu_(y)
    out: Tensor = m.norm(y)
    return out


def norm_twice(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.norm(m.norm(m.conv(x)))
    return out


def conv_twice(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.norm(m.conv(m.conv(x)))
    return out


def relu_between(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.norm(F.relu(m.conv(x)))
    return out


@pytest.mark.parametrize(
    "forward",
    [
        read_elsewhere,
        read_before,
        read_as_a_view,
        read_through_data,
        read_in_a_list,
        changed_in_place,
        norm_twice,
        conv_twice,
        relu_between,
    ],
)
def test_output_with_another_reader_is_not_folded(forward: Any) -> None:
    """Where anything but one BatchNorm sees the output, folding would change it."""
    model, x = Block(forward, **conv_norm()).eval(), torch.randn(2, 3, 5, 5)

    network = Network.of(model, [x])

    assert dict(network.folded) == {}
    with torch.no_grad():
        assert torch.equal(network.module(x), model(x))


def test_norm_without_running_statistics_is_not_folded() -> None:
    """It uses the batch's own statistics, even in evaluation."""
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = Block(lambda m, x: m.norm(m.conv(x)), **conv_norm(norm=norm)).eval()

    network = Network.of(model, [torch.randn(2, 3, 5, 5)])

    assert dict(network.folded) == {}


def test_convolution_with_a_shared_weight_is_not_folded() -> None:
    """Two convolutions with one parameter would need two different weights."""
    other = nn.Conv2d(3, 3, 3, padding=1)
    parts = conv_norm(other=other)
    other.weight = parts["conv"].weight  # type: ignore[assignment]
    model = Block(lambda m, x: m.other(m.norm(m.conv(x))), **parts).eval()

    network = Network.of(model, [torch.randn(2, 3, 5, 5)])

    assert dict(network.folded) == {}


def test_linear_on_a_sequence_is_not_folded() -> None:
    """``BatchNorm1d`` on ``[N, T, C]`` normalizes the second axis, not the linear's outputs."""
    parts = {"conv": nn.Linear(4, 4), "norm": trained(nn.BatchNorm1d(4))}
    model = Block(lambda m, x: m.norm(m.conv(x)), **parts).eval()

    network = Network.of(model, [torch.randn(2, 4, 4)])

    assert dict(network.folded) == {}


def test_embedding_is_not_folded() -> None:
    """An embedding has no bias to take the shift."""
    parts = {"conv": nn.Embedding(9, 4), "norm": trained(nn.BatchNorm1d(4)), "fc": nn.Linear(4, 2)}
    model = Block(lambda m, x: m.fc(m.norm(m.conv(x))), **parts).eval()

    network = Network.of(model, [torch.randint(0, 9, (3,))])

    assert dict(network.folded) == {}


def test_norm_under_two_names_is_folded_once() -> None:
    """Parts that are also listed in a ``Sequential`` have two names; both become identities."""
    parts = conv_norm()
    model = Block(lambda m, x: m.body(x), **parts, body=nn.Sequential(*parts.values())).eval()
    x = torch.randn(2, 3, 5, 5)

    network = Network.of(model, [x])

    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x), atol=1e-5, rtol=1e-5)


def test_chain_of_norms_folds_the_first() -> None:
    """A second BatchNorm reads the first one's output and stays."""
    parts = conv_norm(second=trained(nn.BatchNorm2d(3)))
    model = Block(lambda m, x: m.second(m.norm(m.conv(x))), **parts).eval()
    x = torch.randn(2, 3, 5, 5)

    network = Network.of(model, [x])

    assert dict(network.folded) == {"conv": "norm"}
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_fold_keeps_the_dtype(dtype: torch.dtype) -> None:
    """Weights and biases stay in the model's own type."""
    model = Block(lambda m, x: m.norm(m.conv(x)), **conv_norm()).eval()

    fold_batch_norm(model.to(dtype), {"conv": "norm"})

    conv = model.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert conv.weight.dtype == conv.bias.dtype == dtype


def test_model_is_left_as_it_was() -> None:
    """Only the network's own copy is folded."""
    model = Block(lambda m, x: m.norm(m.conv(x)), **conv_norm()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    Network.of(model, [torch.randn(2, 3, 5, 5)])

    assert isinstance(model.get_submodule("norm"), nn.BatchNorm2d)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


class Halved(nn.Conv2d):
    """Scales behind the product, bias included."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Half of what a convolution says."""
        return super().forward(input) * 0.5


class Wide(nn.Conv2d):
    """Pads first."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """A convolution of the padded input."""
        return super().forward(functional.pad(input, (1, 1, 1, 1)))


@pytest.mark.parametrize("bias", [True, False])
def test_only_a_forward_that_adds_its_bias_as_it_is_takes_a_norm(bias: bool) -> None:
    """A scale behind the layer, also in a hook, would scale the norm's offset too."""
    hooked = nn.Conv2d(3, 3, 3, bias=bias)
    hooked.register_forward_hook(lambda _, __, y: y * 0.5)
    convolutions: list[tuple[nn.Module, dict[str, str]]] = [
        (hooked, {}),
        (Halved(3, 3, 3, bias=bias), {}),
        (Wide(3, 3, 3, bias=bias), {"conv": "norm"}),
    ]
    x = torch.randn(5, 3, 6, 6)

    for conv, expected in convolutions:
        model = Block(lambda m, x: m.norm(m.conv(x)), **conv_norm(conv=conv)).eval()
        network = Network.of(model, [x])

        assert dict(network.folded) == expected
        with torch.no_grad():
            torch.testing.assert_close(network.module(x), model(x), atol=1e-5, rtol=1e-5)
