"""Layers with little between them: the converter would join what is rounded one by one."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.backends.export_check import ExportCheck
from mpq.backends.litert.flatbuffer import read_model
from mpq.backends.litert.graph import Graph
from mpq.backends.litert.padded import only_pads
from mpq.backends.litert.target import FILE, LiteRt
from mpq.backends.shipping import ship
from mpq.errors import PrecisionError
from tests.backends.onnx.networks import examples, in_turn, made

MIXES = {
    "weight-only": ("w8", "w4", "w2"),
    "dynamic": ("w8a8d", "w4a8d"),
    "static": ("w8a8", "w4a8s"),
    "16 bits": ("w8aint16s",),
    "all": ("w4a8", "w8", "w8a8d", "w8aint16s"),
}


def shipped(kind: Callable[[], nn.Module], mix: tuple[str, ...], folder: Path) -> ExportCheck:
    """A network in a mix of precisions, exported."""
    pytest.importorskip("litert_torch")
    model = made(kind)
    return ship(LiteRt(), "litert", in_turn(model, LiteRt(), mix), folder, model, examples(model))


class Linears(nn.Module):
    """Linear layers in a row, behind a mean of an image ``[B, 3, 8, 8]``."""

    def __init__(self, *sizes: int, bias: bool = True) -> None:
        super().__init__()
        pairs = pairwise(sizes)
        self.layers = nn.Sequential(*(nn.Linear(i, o, bias=bias) for i, o in pairs))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.layers(x.mean((1, 2)))
        return found


class Reshaped(nn.Module):
    """A shape between two layers, of which the second reads rows of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 12), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.second(self.first(x.mean((1, 2))).reshape(-1, 2, 6)).flatten(1)
        return found


class Beside(nn.Module):
    """Two layers that read one, whose output is read in floating point as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.first(x.mean((1, 2)))
        found: Tensor = self.head(self.left(x) * x + self.right(x))
        return found


class Scaled(nn.Module):
    """Numbers that the converter multiplies into a weight, or adds to a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 5)
        self.factor, self.more = nn.Parameter(torch.rand(6) + 1), nn.Parameter(torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.second(self.factor * self.first(x.mean((1, 2)) + 0.5) - 1)
        return 2 * x + self.more


class Convolutions(nn.Module):
    """Convolutions in a row, a norm that stays by itself, ReLU6, a head on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.last, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu6(self.norm(self.next(self.stem(x)).relu()))
        found: Tensor = self.head(self.last(x).mean((2, 3)))
        return found


class Same(nn.Conv2d):
    """Pads to as many positions as before, divided by the stride: more behind than before."""

    def forward(self, x: Tensor) -> Tensor:
        """Of an image."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        more = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
        ends = [end for n in reversed(more) for end in (n // 2, n - n // 2)]
        return super().forward(F.pad(x, ends) if any(more) else x)


class Lite(nn.Module):
    """A block of EfficientNet-Lite: convolutions that pad by themselves, norms, ReLU6, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = Same(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.expand, self.norm_1 = Same(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.norm_2 = Same(16, 16, 5, groups=16, bias=False), nn.BatchNorm2d(16)
        self.project, self.norm_3 = Same(16, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.down, self.norm_4 = Same(8, 8, 2, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu6(self.norm(self.stem(x)))
        x = F.relu6(self.norm_1(self.expand(x)))
        x = F.relu6(self.norm_2(self.depthwise(x)))
        x = self.norm_3(self.project(x))
        found: Tensor = self.head((x + self.norm_4(self.down(x))).mean((2, 3)))
        return found


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "two": lambda: Linears(8, 16, 5),
    "two without bias": lambda: Linears(8, 16, 5, bias=False),
    "three": lambda: Linears(8, 16, 6, 5),
    "three without bias": lambda: Linears(8, 16, 6, 5, bias=False),
    "reshaped": Reshaped,
    "beside": Beside,
    "scaled": Scaled,
    "convolutions": Convolutions,
    "lite": Lite,
}


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@pytest.mark.parametrize("kind", NETWORKS.values(), ids=NETWORKS)
def test_layers_in_a_row_compute_what_the_simulation_does(
    kind: Callable[[], nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """Every layer is rounded, and the median example is the simulation's to the last digits."""
    check = shipped(kind, mix, tmp_path / "out")

    assert check.num_layers >= 2
    assert check.max_weight_difference == 0.0
    assert check.median_difference < 2e-6 * check.spread


def operators(folder: Path) -> list[str]:
    """Kinds of a file's operators, in order."""
    graph = Graph(read_model((folder / FILE).read_bytes()))
    return [graph.kind(x) for x in graph.subgraph.operators]


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("mix", [("w8a8",), ("w8aint16s",)], ids=lambda mix: mix[0])
def test_codes_pass_through_padding(mix: tuple[str, ...], tmp_path: Path) -> None:
    """Static layers in a row read each other's codes."""
    check = shipped(Convolutions, mix, tmp_path / "out")

    found = operators(tmp_path / "out")
    first = found.index("CONV_2D")
    assert found[first - 1 : first + 4] == ["QUANTIZE", "CONV_2D", "PAD", "CONV_2D", "DEQUANTIZE"]
    assert check.max_difference < 1e-6 * check.spread


@pytest.mark.usefixtures("same_process")
def test_nothing_is_left_of_barriers(tmp_path: Path) -> None:
    """And a ReLU6 is an option of its layer, as without them."""
    shipped(Lite, ("w8a8",), tmp_path / "out")

    found = operators(tmp_path / "out")
    first, last = found.index("CONV_2D"), found.index("ADD")
    kernels = {"CONV_2D", "DEPTHWISE_CONV_2D"}
    assert [x for x in found[first:last] if x not in kernels] == ["DEQUANTIZE", "DEQUANTIZE"]
    assert "MAXIMUM" not in found


class Almost(nn.Module):
    """Channels of almost nothing beside a bias of 1, as training with ReLU6 leaves them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)
        for channel, size in enumerate((1e-5, 1e-9, 1e-12, 0.0)):
            self.first.weight.data[channel] *= size
            self.first.bias.data[channel] = 1 + channel  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(F.relu6(self.first(x)).mean((2, 3)))
        return found


class AlmostLinear(nn.Module):
    """The same of a linear layer, whose kernel for 4 bits has less room."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 5)
        for channel, size in enumerate((1e-8, 1e-9, 1e-12, 0.0)):
            self.first.weight.data[channel] *= size
            self.first.bias.data[channel] = 1 + channel

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(F.relu6(self.first(x.flatten(1))))
        return found


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("kind", [Almost, AlmostLinear])
@pytest.mark.parametrize("mix", [("w8a8",), ("w4a8s",), ("w8aint16s",)], ids=lambda mix: mix[0])
def test_channels_of_almost_nothing_have_room_for_their_bias(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """Its code would need 40 bits and more; weights lose less than a millionth of the largest."""
    check = shipped(kind, mix, tmp_path / "out")

    assert check.num_layers == 2
    assert check.max_weight_difference < 1e-6
    assert check.max_difference < 1e-6 * check.spread


class Doubled(nn.Conv2d):
    """Gives something else than its operator."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice as much."""
        return 2 * super().forward(x)


class Standardized(nn.Conv2d):
    """Reads another weight than its own."""

    def forward(self, x: Tensor) -> Tensor:
        """With a weight whose mean is 0."""
        found: Tensor = self._conv_forward(x, self.weight - self.weight.mean(), self.bias)
        return found


class Reflecting(nn.Conv2d):
    """Pads with other numbers than zeros."""

    def forward(self, x: Tensor) -> Tensor:
        """Mirrored at its ends."""
        return super().forward(F.pad(x, (1, 1, 1, 1), mode="reflect"))


class Cutting(nn.Linear):
    """Reads something else than it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """Of numbers above zero."""
        return super().forward(x.relu())


class Unbiased(nn.Linear):
    """Leaves its bias out."""

    def forward(self, x: Tensor) -> Tensor:
        """The product alone."""
        return F.linear(x, self.weight)


class Asking(nn.Linear):
    """Takes rows of images alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Refuses others."""
        if x.ndim != 4:
            raise ValueError("no image")
        return super().forward(x)


@pytest.mark.parametrize(
    ("layer", "pads"),
    [
        (Same(3, 8, 3, 2), True),
        (Same(6, 6, 5, groups=6, dilation=2, bias=False), True),
        (nn.Conv1d(3, 4, 3, padding=1), True),
        (nn.Linear(3, 4), True),
        (Doubled(3, 4, 3), False),
        (Standardized(3, 4, 3), False),
        (Reflecting(3, 4, 3), False),
        (Cutting(3, 4), False),
        (Unbiased(3, 4), False),
        (Asking(3, 4), False),
        (nn.Embedding(3, 4), False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_a_forward_does_beside_its_operator_is_found_out(layer: nn.Module, pads: bool) -> None:
    """By running it, and the layer and the random state stay as they are."""
    before, state = {k: v.clone() for k, v in layer.state_dict().items()}, torch.get_rng_state()

    assert only_pads(layer) is pads

    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_that_does_more_than_padding_is_refused(tmp_path: Path) -> None:
    """With its name, before anything is converted."""
    model = made(lambda: nn.Sequential(Doubled(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)))
    found = in_turn(model, LiteRt(), ("w8",))

    with pytest.raises(PrecisionError, match="layer '0' at w8.*does more than padding with zeros"):
        ship(LiteRt(), "litert", found, tmp_path / "out", model, examples(model))
