"""Scales of inputs by channel, of first positions apart, and of two ranges."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import FileFormatError, InputError, PrecisionError
from mpq.hardware_profiles import load_device
from mpq.hardware_profiles.linear import linear_cost
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.input_sample import InputSample, Samples
from mpq.quantization.observer import ActivationRanges, observe_inputs
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS, LeastSquares, MinMax
from mpq.quantization.tensor_format import Granularity


def fake_quantized(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """Affine, by torch's own kernel."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(high - low) / np.float32(2**bits - 1)
    point = int(np.round(np.float32(-low) / scale))
    return torch.fake_quantize_per_tensor_affine(x, float(scale), point, 0, 2**bits - 1)


def quantizer_of(net: nn.Module, x: Tensor, precision: str, method: str) -> Quantizer:
    """Calibrated on one batch."""
    data = Calibration.of([x])
    network = Network.of(net.eval(), data)
    candidates = [Precision.parse(precision)]
    return Quantizer(ActivationRanges.calibrate(network, data, candidates, method))


@pytest.mark.parametrize(
    ("text", "granularity"),
    [
        ("w8a8c", Granularity.INPUT_CHANNEL),
        ("w8a4sc", Granularity.INPUT_CHANNEL),
        ("w8a8f", Granularity.FIRST_APART),
        ("w8aint16sf", Granularity.FIRST_APART),
        ("w4a4twin", Granularity.TENSOR),
        ("w4a3log2", Granularity.TENSOR),
    ],
)
def test_spellings(text: str, granularity: Granularity) -> None:
    """Read, written, priced like other inputs of so many bits."""
    precision = Precision.parse(text)
    plain = Precision.parse(text.replace("twin", "").replace("log2", "").rstrip("cf"))
    assert str(precision) == text
    assert precision.activation.granularity is granularity
    assert precision.activation.why_simulated
    assert not plain.activation.why_simulated
    network = Network.of(nn.Sequential(nn.Linear(4, 3)).eval(), Calibration.of([torch.ones(2, 4)]))
    for resource in ("bit_operations", "activation_bytes", "weight_bytes"):
        costs = linear_cost(resource, network.layers, [precision, plain]).values
        assert costs[0, 0] == costs[0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w4a4twinc", "4twin has calibrated scales for the whole input; write a4twin"),
        ("w4a4log2d", "4log2 has calibrated scales for the whole input"),
        ("w4a4log2s", "4log2 has calibrated scales for the whole input"),
        ("w4log2a8", "4log2 is for inputs; write w4a4log2"),
        ("w8a16c", "fp16 has no scale, so no 'channels' either"),
        ("w8a16f", "fp16 has no scale, so no 'first' either"),
        ("w8a8cf", "is not a precision"),
        ("w4a2twin", "is not a precision"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(PrecisionError, match=message):
        Precision.parse(text)


LARGE = torch.tensor([64.0, 1.0, 0.2, 0.0, 5.0, 1.0])
"""Sizes of six channels; one is never used."""


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv1d"])
def test_every_channel_has_a_scale(kind: str) -> None:
    """And a zero point: against torch, channel by channel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, 5, 3, generator=generator)
    layers = {"linear": nn.Linear(6, 2), "conv2d": nn.Conv2d(6, 2, 3, padding=1)}
    layer = layers.get(kind, nn.Conv1d(6, 2, 3, groups=2))
    if kind == "linear":
        x = x.movedim(1, -1) * LARGE
    else:
        x = x * LARGE.view(-1, 1, 1)
        x = x if kind == "conv2d" else x.flatten(2)
    net = nn.Sequential(layer)
    tensor_format = Precision.parse("w8a6c").activation

    quantizer = quantizer_of(net, x, "w8a6c", "minmax")
    found = quantizer.activation("0", layer, x, tensor_format)

    calibrated = quantizer.ranges.of("0", tensor_format)
    assert calibrated is not None
    axis = x.ndim - 1 if kind == "linear" else 1
    assert len(calibrated.channels) == 6
    for channel, (low, high) in enumerate(calibrated.channels):
        one = x.select(axis, channel)
        assert (low, high) == (min(float(one.min()), 0), max(float(one.max()), 0))
        if high > low:
            one = fake_quantized(one, low, high, 6)
        torch.testing.assert_close(found.select(axis, channel), one, rtol=1e-6, atol=0)


def test_small_channels_lose_less_with_a_scale_of_their_own() -> None:
    """Where one channel is 64 times as large as the others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=generator) * LARGE
    layer = nn.Linear(6, 2)
    errors = []
    for spelling in ("w8a8", "w8a8c"):
        quantizer = quantizer_of(nn.Sequential(layer), x, spelling, "mse")
        read = quantizer.activation("0", layer, x, Precision.parse(spelling).activation)
        errors.append(float((read - x)[:, 1:].square().sum()))
    assert errors[1] < errors[0] / 50


class Sequence(nn.Module):
    """Reads ``[N, T, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


def test_first_positions_have_a_range_of_their_own() -> None:
    """Against both parts by torch; a single position is a later one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, 4, generator=generator)
    x[:, 0] *= 100
    net, tensor_format = Sequence(), Precision.parse("w8a8f").activation

    quantizer = quantizer_of(net, x, "w8a8f", "minmax")
    found = quantizer.activation("fc", net.fc, x, tensor_format)
    single = quantizer.activation("fc", net.fc, x[:, :1], tensor_format)

    rest = fake_quantized(x[:, 1:], float(x[:, 1:].min()), float(x[:, 1:].max()), 8)
    first = fake_quantized(x[:, :1], float(x[:, 0].min()), float(x[:, 0].max()), 8)
    torch.testing.assert_close(found, torch.cat([first, rest], dim=1), rtol=1e-6, atol=0)
    assert float(single.abs().max()) <= float(x[:, 1:].abs().max()) * 1.01


def test_without_positions_there_is_no_first_one() -> None:
    """Of vectors and of images the range is that of everything."""
    generator = torch.Generator().manual_seed(0)
    cases: list[tuple[nn.Module, Tensor]] = [
        (nn.Linear(4, 3), torch.randn(8, 4, generator=generator)),
        (nn.Conv2d(4, 3, 3), torch.randn(8, 4, 5, 5, generator=generator)),
    ]
    for layer, x in cases:
        ranges = [
            quantizer_of(nn.Sequential(layer), x, text, "mse").ranges.of(
                "0", Precision.parse(text).activation
            )
            for text in ("w8a8", "w8a8f")
        ]
        assert ranges[0] == ranges[1]


@pytest.mark.parametrize("text", ["minmax", "mse", "percentile:share=0.99", "loss"])
@pytest.mark.parametrize("is_signed", [True, False])
def test_both_scales_of_two_ranges_are_those_with_the_least_error(
    text: str, is_signed: bool
) -> None:
    """Of all octaves, by enumeration of the levels in numpy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, generator=generator)
    x = nn.functional.gelu(2 * x) if is_signed else x.exp() / 50
    method, tensor_format = RANGE_METHODS.build(text), Precision.parse("w4a4twin").activation

    found = InputSample(x).range(method, tensor_format)

    def error(octaves: int, low: float, high: float) -> float:
        fine = [-(k + 1) if is_signed else k for k in range(8)]
        levels = np.array([*range(8), *(k / 2**octaves for k in fine)])
        scale = max(high / 7, low / (-8 / 2**octaves) if is_signed else 0)
        apart = np.abs(x.numpy()[:, None] - scale * levels).min(axis=1)
        return float((apart**2).sum())

    number = tensor_format.number
    errors = []
    for octaves in range(16):
        tried = number.with_octaves(octaves, is_signed)
        low, high = (float(end) for end in method.ends(x[None], tried, True))
        errors.append(error(octaves, min(low, 0), max(high, 0)))
    assert found.octaves == int(np.argmin(errors))
    assert error(found.octaves, found.low, found.high) == pytest.approx(min(errors), rel=1e-4)
    assert found.octaves > 0


def test_inputs_behind_a_gelu_lose_less_in_two_ranges() -> None:
    """Than in symmetric steps: below 0 they reach to -.17, above it to 7."""
    generator = torch.Generator().manual_seed(0)
    x = nn.functional.gelu(2 * torch.randn(3000, 4, generator=generator))
    layer = nn.Linear(4, 2)
    errors = []
    for spelling in ("w8a4s", "w8a4twin"):
        quantizer = quantizer_of(nn.Sequential(layer), x, spelling, "mse")
        read = quantizer.activation("0", layer, x, Precision.parse(spelling).activation)
        errors.append(float((read - x).square().sum()))
    assert errors[1] < errors[0]


def test_powers_of_two_of_a_softmax_keep_relative_size() -> None:
    """Small probabilities stay apart from 0 where even steps make all of them 0."""
    generator = torch.Generator().manual_seed(0)
    x = (4 * torch.randn(2000, 8, generator=generator)).softmax(dim=1)
    layer = nn.Linear(8, 2)
    quantizer = quantizer_of(nn.Sequential(layer), x, "w8a4log2", "minmax")

    read = quantizer.activation("0", layer, x, Precision.parse("w8a4log2").activation)

    top = float(x.max())
    codes = torch.log2(read[read > 0] / top)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-5)
    is_small = (x < top / 64) & (x > top / 8192)
    assert bool((read[is_small] / x[is_small] - 1).abs().max() < 0.34)


def assigned(precision: str, calibrated: ActivationRange | None, **given: Any) -> Assignment:
    """One layer of four inputs."""
    parsed = Precision.parse(precision)
    layer = AssignedLayer("fc", "linear", (3, 4), parsed, calibrated, **given)
    return Assignment((layer,))


@pytest.mark.parametrize(
    ("precision", "calibrated"),
    [
        ("w4a4twin", ActivationRange(-0.5, 2.0, 3)),
        ("w4a4log2", ActivationRange(0.0, 1.0)),
        (
            "w8a8c",
            ActivationRange(-1.0, 2.0, channels=((-1.0, 2.0), (0.0, 0.0), (-0.5, 0.0), (0.0, 0.1))),
        ),
        ("w8a8f", ActivationRange(-1.0, 2.0, first=(-300.0, 4.0))),
        ("w8a8f", ActivationRange(-1.0, 2.0)),
    ],
)
def test_files_hold_it(precision: str, calibrated: ActivationRange) -> None:
    """Written and read."""
    written = assigned(precision, calibrated)
    assert Assignment.from_json(written.to_json()) == written


@pytest.mark.parametrize(
    ("precision", "changes", "message"),
    [
        ("w8a8", {"octaves": 1}, "there are octaves, and its format has one scale"),
        ("w4a4twin", {"octaves": 16}, "16"),
        ("w8a8", {"channels": [[-1, 1]] * 4}, "channels have ranges, and its format has one"),
        ("w8a8c", {"channels": [[-1, 1]] * 7}, "7 channels have ranges, and the layer has other"),
        ("w8a8c", {}, "a range for every channel, and none is given"),
        ("w8a8", {"first": [-1, 1]}, "first positions have no range of their own"),
        ("w8a8f", {"first": [1, -1]}, "not a valid assignment"),
        ("w8a8f", {"first": [-1, 1], "range": None}, "and the whole has none"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    precision: str, changes: dict[str, Any], message: str
) -> None:
    data = json.loads(assigned(precision, ActivationRange(-1.0, 2.0)).to_json())
    data["layers"][0]["activation"] |= changes
    with pytest.raises(FileFormatError, match=message):
        Assignment.from_json(json.dumps(data))


def test_octaves_are_whole_numbers_up_to_15() -> None:
    with pytest.raises(InputError, match="0 to 15 times"):
        ActivationRange(-1.0, 1.0, 16)
    with pytest.raises(InputError, match="finite number"):
        ActivationRange(-1.0, 1.0, first=(1.0, 0.0))


@pytest.mark.parametrize("text", ["w8a8c", "w8a8f", "w8a8twin", "w8a4log2"])
def test_no_device_and_no_backend_but_the_simulation_takes_it(text: str) -> None:
    """Refused with the reason; the simulation computes what the search measured."""
    net = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).eval()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    task = mpq.Task(net, [x[:48]], [x[48:]], candidates=[text], rounding="nearest")
    result = mpq.search(task, {"weight_bytes": 10_000})

    measured = mpq.evaluate(net, result.assignment, [x[48:]])["quantized"]

    assert measured.divergence == pytest.approx(result.assignment.metadata.measured_loss, rel=1e-5)
    assert not load_device("nvidia-t4").runs_somewhere(Precision.parse(text))
    for backend in ("onnx", "aimet", "modelopt"):
        with pytest.raises(PrecisionError, match="no kernel here"):
            mpq.export(result.assignment, "nowhere", backend, net, [x])


def test_extremes_are_taken_channel_by_channel() -> None:
    """By ``minmax`` no channel saturates, and by another method some do."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    network = Network.of(nn.Sequential(nn.Linear(3, 2)).eval(), Calibration.of([x]))
    tensor_format = Precision.parse("w8a3c").activation
    full = InputSample(x.flatten(), channels=InputSample(x.T))

    found = ActivationRanges.calibrate(
        network, Calibration.of([x]), [Precision.parse("w8a3c")], "minmax"
    ).of("0", tensor_format)

    assert found == full.range(MinMax(), tensor_format)
    assert found is not None
    assert found.high == float(x.max())
    assert full.range(LeastSquares(), tensor_format).high < found.high


def test_a_batch_is_drawn_from_alike_alone() -> None:
    """Whatever was drawn of batches before: several processes can observe some of them each."""
    x = torch.randn(5, 40_000, 2, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).eval()
    data = Calibration.of([x[:2], x[2:4], x[4:]])
    network = Network.of(net, data)
    method, formats = LeastSquares(), [Precision.parse("w8a8c").activation]

    whole = observe_inputs(network, data, method, formats)
    parts = [
        observe_inputs(network, data.between(*span), method, formats)
        for span in ((0, 2), (2, 4), (4, 5))
    ]

    for name, sample in whole.items():
        assert torch.equal(sample.numbers, torch.cat([part[name].numbers for part in parts]))
    assert not torch.equal(whole["0"].numbers[:65536], whole["0"].numbers[65536 : 2 * 65536])


def test_of_many_numbers_of_a_channel_the_extremes_are_seen() -> None:
    """Beside a random sample, which is the same for all channels."""
    x = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0))
    x[17, 1] = 1000
    samples = Samples([Precision.parse("w8a8c").activation])

    samples.add("fc", nn.Linear(2, 2), x)

    channels = samples.of()["fc"].channels
    assert channels is not None
    assert channels.numbers.shape == (2, 32_768 + 2)
    assert channels.numbers.amin(dim=1).tolist() == x.amin(dim=0).tolist()
    assert channels.numbers.amax(dim=1).tolist() == x.amax(dim=0).tolist()
    pairs = {tuple(pair) for pair in x.tolist()}
    assert {tuple(pair) for pair in channels.numbers[:, :-2].T.tolist()} <= pairs
