"""What the target cannot run is refused by name, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.backends.c.target import C
from mpq.backends.shipping import ship
from mpq.errors import InputError, MissingDependencyError, ModelError, PrecisionError
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.range_method import ActivationRange
from tests.backends.c.networks import assigned

DATA = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """Two convolutions, and something between them."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Conv2d(4, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.constant = nn.Parameter(torch.ones(1, 4, 6, 6))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        """Of the same height and width, whatever lies between."""
        found: Tensor = self.second(self.between(self, self.first(x)))
        return found


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "activation": (lambda _, x: F.gelu(x), "after layer 'first'.*no kernel for gelu"),
    "product": (lambda _, x: x * 2.0, "after layer 'first'.*no kernel for mul"),
    "constant": (lambda net, x: x + net.constant, "a constant .*constant.* is added"),
    "number": (lambda _, x: x + 1.0, "here is 1.0"),
    "factor": (lambda _, x: torch.add(x, x.relu(), alpha=2), "without a factor"),
    "order": (lambda _, x: x.transpose(2, 3), "no kernel for transpose"),
    "norm": (lambda net, x: net.norm(F.relu(x)), "no kernel for .*batch_norm"),
    "range": (lambda _, x: x.clamp(1.0, 2.0), "with 0 in them"),
    "padding": (lambda _, x: F.pad(x, (1, 1, 1, 1), value=1.0), "pads with zeros"),
    "mirror": (lambda _, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pads with zeros"),
    "means": (
        lambda _, x: F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False), "whole windows",
    ),
    "windows": (lambda _, x: F.adaptive_avg_pool2d(x, 4), "windows are of one size"),
    "channels": (lambda _, x: torch.cat([x[:, :2], x[:, 2:]], 1), "height and width only"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_kernel_is_refused(name: str, tmp_path: Path) -> None:
    """With the operation and the layer before it."""
    between, why = CASES[name]
    model = Between(between).eval()

    with pytest.raises(ModelError, match=why):
        ship(C(), "c", assigned(model, DATA, ("w8a8",)), tmp_path / "out", model, [DATA])

    assert not list(tmp_path.iterdir())


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        found: Tensor = self.only(F.relu(self.only(x)))
        return found


class Two(nn.Module):
    """Two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """A sum, and its negative part left out."""
        y = self.only(x)
        return {"logits": y, "other": F.relu(y)}


@pytest.mark.parametrize(("kind", "why"), [(Twice, "'only' is called 2 times"), (Two, "returns 2")])
def test_other_graphs_are_refused(kind: type[nn.Module], why: str, tmp_path: Path) -> None:
    """A layer with two inputs' ranges, outputs beside the first."""
    torch.manual_seed(0)
    model = kind().eval()
    layers = [AssignedLayer("only", "conv2d", (3, 3, 1, 1), Precision.parse("w8a8"))]
    ends = ActivationRange(-3.0, 3.0)
    layers = [AssignedLayer(x.name, x.kind, x.weight_shape, x.precision, ends) for x in layers]

    with pytest.raises(ModelError, match=why):
        ship(C(), "c", Assignment(tuple(layers)), tmp_path / "out", model, [DATA])


@pytest.mark.parametrize(
    ("kind", "shape", "precision", "why"),
    [
        ("conv3d", (4, 4, 1, 1, 1), "w8a8", "of kind conv3d"),
        ("embedding", (4, 4), "w8a8", "of kind embedding"),
        ("conv2d", (4, 4, 1, 1), "w8za8", "symmetric integers"),
        ("conv2d", (4, 4, 1, 1), "wfp8a8", "symmetric integers"),
        ("linear", (4, 64), "w8g32a8", "of a channel, or of a whole weight"),
        ("linear", (4, 4), "w8", "integers of 2 to 8 bits with a static scale"),
        ("linear", (4, 4), "w8a8d", "with a static scale"),
        ("linear", (4, 4), "w8a16", "integers of 2 to 8 bits"),
        ("linear", (4, 4), "fp32", "symmetric integers"),
    ],
)
def test_precisions_that_it_lacks_are_refused(
    kind: str, shape: tuple[int, ...], precision: str, why: str
) -> None:
    """With the layer's name; also a layer that stays as it came, as there is no floating point."""
    layer = AssignedLayer("fc", kind, shape, Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'fc' at .*{why}"):
        C().check([layer])


def test_a_search_refuses_layers_that_would_stay() -> None:
    """Before anything is measured: other targets would leave them as they came."""
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 2, 1)).eval()

    with pytest.raises(PrecisionError, match="layer '0' takes none .*conv_transpose2d"):
        mpq.search(mpq.Task(model, [DATA], to="c"), ["weight_bytes=1KiB"])


def test_layers_that_are_left_out_are_refused(tmp_path: Path) -> None:
    """An assignment without one of the network's layers, and a search for one."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    first, _ = assigned(model, DATA, ("w8a8",)).layers

    with pytest.raises(PrecisionError, match="layer '2' is in no precision"):
        ship(C(), "c", Assignment((first,)), tmp_path / "out", model, [DATA])
    with pytest.raises(PrecisionError, match="layer '2' is in no precision"):
        mpq.Session.of(mpq.Task(model, [DATA], to="c", rules=mpq.Rules(exclude=["2"])))


def test_a_search_leaves_no_layer_in_floating_point() -> None:
    """Neither as a candidate, nor where it is asked for."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    task = mpq.Task(model, [DATA], to="c", candidates=["fp32", "w8a8"])

    found = mpq.search(task, ["weight_bytes=1MiB"], sensitivity="weight-error").assignment

    assert set(found.precisions.values()) == {Precision.parse("w8a8")}
    with pytest.raises(PrecisionError, match="'2' is fixed at fp32 .*symmetric integers"):
        mpq.Session.of(mpq.Task(model, [DATA], to="c", rules=mpq.Rules(fix={"2": "fp32"})))


def test_readers_of_one_tensor_agree(tmp_path: Path) -> None:
    """What is stored once has one format: without ties two layers may ask for two."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.a(x) + self.b(x)
            return found

    model = Parallel().eval()
    ends = ActivationRange(-3.0, 3.0)
    layers = tuple(
        AssignedLayer(name, "conv2d", (2, 3, 1, 1), Precision.parse(text), ends)
        for name, text in (("a", "w8a8"), ("b", "w8a4"))
    )

    with pytest.raises(PrecisionError, match="'a' and 'b' read one tensor in different formats"):
        ship(C(), "c", Assignment(layers), tmp_path / "out", model, [DATA])


def test_sums_that_leave_32_bits_are_refused(tmp_path: Path) -> None:
    """By the weights that there are, not by those that there could be."""
    model = nn.Sequential(nn.Linear(70_000, 2, bias=False)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    data = torch.ones(4, 70_000)

    with pytest.raises(ModelError, match="layer '0': sums of 70000 products could leave 32 bits"):
        ship(C(), "c", assigned(model, data, ("w8a8",)), tmp_path / "out", model, [data])


def test_several_inputs_are_refused(tmp_path: Path) -> None:
    """The C function takes one tensor of numbers."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            found: Tensor = self.layer(x if more is None else x + more)
            return found

    model = Shifted().eval()
    data = torch.ones(4, 4)
    found = assigned(model, data, ("w8a8",))

    with pytest.raises(InputError, match="read one tensor of numbers"):
        ship(C(), "c", found, tmp_path / "out", model, [{"x": data, "more": data}])


def test_without_a_compiler_nothing_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to install."""
    monkeypatch.setenv("CC", "no-such-compiler")
    model = nn.Sequential(nn.Linear(4, 2)).eval()
    data = torch.ones(4, 4)
    found = assigned(model, data, ("w8a8",))

    with pytest.raises(MissingDependencyError, match="no-such-compiler.*install gcc"):
        ship(C(), "c", found, tmp_path / "out", model, [data])


def test_layers_of_the_network_stay(tmp_path: Path) -> None:
    """An export changes nothing of the user's network."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    before = [p.clone() for p in model.parameters()]
    found = assigned(model, DATA, ("w4a8", "w2a4"))
    check = ship(C(), "c", found, tmp_path / "out", model, [DATA])

    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert Network.of(model, [DATA]).num_unquantized == 6
    assert found.layers[0].precision != ORIGINAL
    assert check.kinds == {"4-bit codes": 1, "2-bit codes": 1}
    assert check.predicted_bytes == check.file_bytes == check.figures["flash_bytes"]
    assert check.promised_bytes == check.file_bytes
    assert check.median_difference < 1e-5 * check.spread
