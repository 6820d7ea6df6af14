"""The target ``litert``: our codes in its files, and what its interpreter makes of them."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends.export_check import ExportCheck
from mpq.backends.litert.capabilities import CONTAINERS
from mpq.backends.litert.flatbuffer import constant_bytes
from mpq.backends.litert.target import FILE, WITHOUT_XNNPACK, LiteRt
from mpq.backends.shipping import ship
from mpq.errors import InputError, MissingDependencyError, ModelError, PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made


@pytest.mark.parametrize(
    ("kind", "mix"),
    [
        (Images, ("w2", "w3", "w4", "fp32", "w6", "w8", "w4t")),
        (Words, ("w4", "w8", "w2", "w7", "w5")),
    ],
)
def test_litert_computes_what_the_simulation_does(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """In a process of its own: weights to the bit, outputs to float32's last digits."""
    pytest.importorskip("litert_torch")
    model = made(kind)
    found = in_turn(model, LiteRt(), mix)

    check = ship(LiteRt(), "litert", found, tmp_path / "out", model, examples(model))

    quantized = [x for x in found.layers if x.precision != ORIGINAL]
    assert check.num_layers == len(quantized)
    assert check.max_weight_difference == 0.0
    assert check.max_difference < 1e-5 * check.spread
    expected = {CONTAINERS[x.precision.weight.number.bits] for x in quantized}
    assert set(check.kinds) == {f"INT{bits}" for bits in expected}


def shipped_check(kind: type[nn.Module], mix: tuple[str, ...], folder: Path) -> ExportCheck:
    """A network in a mix of precisions, exported."""
    pytest.importorskip("litert_torch")
    model = made(kind)
    return ship(LiteRt(), "litert", in_turn(model, LiteRt(), mix), folder, model, examples(model))


@pytest.mark.parametrize(
    ("kind", "mix"),
    [
        (Images, ("w8a8d", "w4a8d")),
        (Images, ("w2a8d", "w8a8d", "w4a8d", "fp32")),
        (Words, ("w8a8d",)),
        (Words, ("w8", "w2a8d", "w3a8d")),
    ],
)
def test_litert_computes_dynamic_layers_as_the_simulation(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """The median example to float32's last digits; some have an input between two codes."""
    check = shipped_check(kind, mix, tmp_path / "out")

    assert check.num_layers > 0
    assert check.max_weight_difference == 0.0
    assert check.median_difference < 1e-5 * check.spread
    assert check.median_from_search is None
    assert set(check.max_differences_otherwise) == {WITHOUT_XNNPACK}


@pytest.mark.parametrize("kind", [Images, Words])
@pytest.mark.parametrize(
    "mix", [("w8a8",), ("w4a8",), ("w8a8s", "w4a8s"), ("w8a8", "fp32"), ("w3a8", "w7a8", "w5a8s")]
)
def test_litert_computes_static_layers_bit_for_bit(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """Kernels of XNNPACK, and those that it lacks: plain, grouped, depthwise at 4 bits."""
    check = shipped_check(kind, mix, tmp_path / "out")

    assert check.num_layers > 0
    assert check.max_difference < 1e-6 * check.spread
    # Outputs are rounded, which a search does not measure.
    assert check.median_from_search is not None
    assert check.median_from_search > 1e-4 * check.spread


def test_litert_computes_all_ways_in_one_file(tmp_path: Path) -> None:
    """Decoded weights, dynamic and static layers, and layers as they came."""
    mix = ("w2", "w4a8", "fp32", "w8a8d", "w8a8", "w3a8", "w5a8d")

    check = shipped_check(Images, mix, tmp_path / "out")

    assert check.kinds == {"INT2": 1, "INT4": 2, "INT8": 1}
    assert check.median_difference < 1e-5 * check.spread


class Odd(nn.Module):
    """Rows of odd lengths, one output channel, dilation, a stride, a pool, ReLU6, two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1, stride=2)
        self.wide = nn.Conv2d(7, 7, 3, padding=2, dilation=2)
        self.one = nn.Conv2d(7, 1, 1)
        self.first, self.second = nn.Linear(4, 33), nn.Linear(33, 5, bias=False)
        self.beside = nn.Linear(33, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = nn.functional.max_pool2d(nn.functional.relu6(self.stem(x)), 2)
        x = self.first(self.one(self.wide(x).relu()).flatten(1)).relu()
        found: Tensor = self.second(x) + self.beside(x)
        return found


@pytest.mark.parametrize("mix", [("w8a8",), ("w4a8",), ("w8a8", "w4a8s", "w6a8")])
def test_litert_computes_odd_shapes_bit_for_bit(mix: tuple[str, ...], tmp_path: Path) -> None:
    """Also where XNNPACK has no kernel for a shape."""
    check = shipped_check(Odd, mix, tmp_path / "out")

    assert check.num_layers > 0
    assert check.max_difference < 1e-6 * check.spread


class Twice(nn.Module):
    """One layer that is called twice, and a layer that reads the sum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        first = self.again(x.mean((1, 2))).relu()
        found: Tensor = self.head(first + self.again(first).relu())
        return found


def test_litert_computes_a_layer_twice_in_the_median_as_simulated(tmp_path: Path) -> None:
    """Its outputs have one range, over both calls."""
    check = shipped_check(Twice, ("w8a8",), tmp_path / "out")

    assert check.kinds == {"INT8": 2}
    assert check.median_difference < 1e-6 * check.spread


def test_ties_in_whole_rows_are_refused(tmp_path: Path) -> None:
    """Rows of a 4-bit embedding are multiples of one step: many lie between two codes."""
    with pytest.raises(ModelError, match="outputs differ from the simulation's"):
        shipped_check(Words, ("w4a8d",), tmp_path / "out")
    assert not (tmp_path / "out").exists()


CONVOLUTION, POINTWISE, ONE_CHANNEL, DEPTHWISE = (
    AssignedLayer("conv", "conv2d", shape, Precision.parse("w8"))
    for shape in ((8, 4, 3, 3), (8, 4, 1, 1), (1, 4, 3, 3), (8, 1, 3, 3))
)
LINEAR = AssignedLayer("fc", "linear", (8, 64), Precision.parse("w8"))


@pytest.mark.parametrize(
    ("layer", "precision", "why"),
    [
        (LINEAR, "w4g32", "scales are of a channel"),
        (LINEAR, "w8z", "symmetric integers"),
        (LINEAR, "wfp8a32", "symmetric integers"),
        (LINEAR, "w8a4", "integers of 8 bits"),
        (LINEAR, "w8a16", "integers of 8 bits .* or 16"),
        (LINEAR, "w8afp8", "integers of 8 bits"),
        (LINEAR, "w8a8sd", "have a zero point: a8d"),
        (CONVOLUTION, "w2a8d", "of 2 it computes garbage"),
        (CONVOLUTION, "w2a8", "of 2 it computes garbage"),
        (CONVOLUTION, "w4ta8d", "with one scale rounds inputs without a zero point"),
        (ONE_CHANNEL, "w3a8d", "with one scale rounds inputs without a zero point"),
        (POINTWISE, "w8a8d", "a kernel of 1 rounds every position by itself"),
        (POINTWISE, "w5a8d", "a kernel of 1 rounds every position by itself"),
        (DEPTHWISE, "w4a8d", "one input channel a group takes weights of 8 bits"),
        (DEPTHWISE, "w2a8", "of 2 it computes garbage"),
    ],
)
def test_what_litert_cannot_hold_is_refused(layer: AssignedLayer, precision: str, why: str) -> None:
    """With the layer's name and the reason."""
    asked = replace(layer, precision=Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'{layer.name}' at .*{why}"):
        LiteRt().check([asked])


@pytest.mark.parametrize(
    ("layer", "precisions"),
    [
        (LINEAR, ("w2a8d", "w4ta8d", "w8a8d", "w2a8", "w4a8s", "w8ta8", "w3a8")),
        (CONVOLUTION, ("w3a8d", "w4a8d", "w8ta8d", "w4a8", "w8ta8s", "w2")),
        (POINTWISE, ("w4a8d", "w8a8", "w4a8")),
        (DEPTHWISE, ("w8a8d", "w4a8", "w8a8")),
        (AssignedLayer("ids", "embedding", (9, 8), Precision.parse("w8")), ("w8a8", "w2a8d")),
    ],
)
def test_what_its_kernels_take_is_held(layer: AssignedLayer, precisions: tuple[str, ...]) -> None:
    """Everything that ran and agreed."""
    for precision in precisions:
        assert LiteRt().refusal(layer, Precision.parse(precision)) == ""


class Shared(nn.Module):
    """Two linear layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Of the first layer's ReLU."""
        found: Tensor = self.second(self.first(x.mean((1, 2))).relu())
        return found


def test_static_layers_of_one_weight_are_refused(tmp_path: Path) -> None:
    """The file holds it once, and does not tell which operator is whose."""
    with pytest.raises(ModelError, match=r"'first' at w8a8 shares its weight with 'second'"):
        shipped_check(Shared, ("w8a8",), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_marks_are_no_initial_weights(tmp_path: Path) -> None:
    """An embedding that was drawn first, from the seed 0, is not taken for the layer's weight."""
    pytest.importorskip("litert_torch")
    model = made(Words, False)
    found = in_turn(model, LiteRt(), ("w8",))
    kept = (x if x.name == "head" else replace(x, precision=ORIGINAL) for x in found.layers)

    check = ship(
        LiteRt(), "litert", replace(found, layers=tuple(kept)), tmp_path / "out", model,
        examples(model),
    )  # fmt: skip

    assert check.max_difference < 1e-5 * check.spread


def test_bytes_are_those_of_the_containers() -> None:
    """3 bits take 4; every channel 12 bytes more, and with static inputs 24."""
    for precision, scales in (("w3", 96), ("w3a8d", 96), ("w3a8", 192)):
        layer = replace(LINEAR, precision=Precision.parse(precision))

        assert LiteRt().stored_bits(layer, layer.precision) == 8 * 64 * 4 + 8 * scales


def test_a_file_holds_nothing_twice(tmp_path: Path) -> None:
    """Floating-point weights and biases that became integers are gone."""
    check = shipped_check(Odd, ("w8a8",), tmp_path / "out")

    # Codes, and biases in 32 bits; shapes and axes of the converter's operators.
    model = made(Odd)
    codes = sum(p.numel() * (1 if p.ndim > 1 else 4) for p in model.parameters())
    constants = constant_bytes(tmp_path / "out" / FILE)
    assert codes <= constants <= codes + 200
    assert check.file_bytes >= constants


def test_a_search_refuses_what_cannot_be_converted() -> None:
    """Before anything is estimated."""
    pytest.importorskip("litert_torch")

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y if y.sum() > 0 else 2 * y

    torch.manual_seed(0)
    data = [torch.randn(8, 8) for _ in range(2)]
    task = mpq.Task(Branching().eval(), data, to="litert")

    with pytest.raises(ModelError, match="litert-torch cannot convert the network: .*guard"):
        mpq.Session.of(task)


def test_no_example_at_a_time_is_refused() -> None:
    """A batch has one at least."""
    with pytest.raises(InputError, match="batch_size is 1 or more"):
        LiteRt(batch_size=0)


def test_a_runtime_that_is_not_there_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    found = in_turn(model, LiteRt(), ("w4",))

    with pytest.raises(MissingDependencyError, match=r"pip install 'mpq\[litert\]'"):
        ship(LiteRt(), "litert", found, tmp_path / "out", model, [torch.randn(4, 8)])
    assert not (tmp_path / "out").exists()
