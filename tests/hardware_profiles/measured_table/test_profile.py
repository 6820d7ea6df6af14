"""Measured tables: exact lookup, interpolation, conversions, fixed parts, bad input."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import nn

import mpq
from mpq.errors import InputError, UnknownNameError
from mpq.hardware_profiles import (
    Conversion,
    Entry,
    FixedPart,
    MeasuredTable,
    Pricing,
    Shape,
    Workload,
)
from mpq.network.layer import Layer
from mpq.quantization.precision import Precision

FP32, W8, W4 = map(Precision.parse, ("fp32", "w8a8", "w4g32a32"))
CHOICES = (FP32, W8)


def linear(name: str, features: int, outputs: int, tokens: int = 1, **more: Any) -> Layer:
    """A linear layer that reads so many tokens per example."""
    axes = (tokens,) if tokens > 1 else ()
    calls = more.get("calls", 1)
    read, written = tokens * features * calls, tokens * outputs * calls
    shapes = (outputs, features), outputs, (*axes, features), (*axes, outputs)
    return Layer(name, "linear", *shapes, read, written, read * outputs, **more)


def entry(
    features: int = 16,
    outputs: int = 8,
    tokens: int = 1,
    precision: Precision = FP32,
    seconds: float = 1e-3,
    batch_size: int = 1,
    **more: Any,
) -> Entry:
    """A measured linear layer."""
    axes = (tokens,) if tokens > 1 else ()
    shapes = (outputs, features), (*axes, features), (*axes, outputs)
    return Entry("linear", *shapes, 1, batch_size, precision, seconds, **more)


def table(*entries: Entry, **more: Any) -> MeasuredTable:
    """A table of these entries."""
    about = ("toy", "Toy", "", "measured for a test", {"os": "x"})
    return MeasuredTable(*about, entries or (entry(),), **more)


def seconds(found: MeasuredTable, layer: Layer, candidate: Precision, batch_size: int = 1) -> float:
    """Latency of a single layer."""
    return float(found.cost("latency", (layer,), (candidate,), Workload(batch_size)).values[0, 0])


def half_width(found: MeasuredTable, layer: Layer, candidate: Precision) -> float:
    """Uncertainty of a single layer's latency."""
    return float(found.uncertainty("latency", (layer,), (candidate,), Workload()).values[0, 0])


SIZES = tuple(itertools.product((8, 16, 64), (8, 32), (1, 5)))  # features, outputs, tokens


def features_of(size: tuple[int, int, int]) -> list[float]:
    """One, MACs, weights, numbers read and written: by hand."""
    features, outputs, tokens = size
    return [
        1.0,
        tokens * features * outputs,
        features * outputs,
        tokens * features + tokens * outputs,
    ]


def grid(times: Any) -> tuple[Entry, ...]:
    """A measurement of each of ``SIZES``."""
    return tuple(entry(*size, seconds=float(t)) for size, t in zip(SIZES, times, strict=True))


def noisy() -> tuple[list[float], tuple[Entry, ...]]:
    """Times that no formula fits."""
    rng = np.random.default_rng(0)
    times = [(1e-6 + 1e-9 * features_of(size)[1]) * float(rng.lognormal(0, 0.4)) for size in SIZES]
    return times, grid(times)


def reference_fit(sizes: Any, times: Any) -> Any:
    """Least relative squares with bounds, by another solver (scaled for its tolerance)."""
    rows = np.array([features_of(size) for size in sizes]) / np.array(times)[:, None]
    scale = rows.max(axis=0)
    found = lsq_linear(rows / scale, np.ones(len(rows)), (0, np.inf), tol=1e-14, max_iter=1000)
    return found.x / scale


def test_a_measured_shape_costs_what_was_measured() -> None:
    """Times are per call: a layer that is called three times takes three times as long."""
    found = table(entry(seconds=2e-3), entry(seconds=3e-3, precision=W8), entry(4, seconds=1.0))

    once, thrice = linear("a", 16, 8), linear("b", 16, 8, calls=3)

    values = found.cost("latency", (once, thrice), CHOICES, Workload()).values
    assert values.tolist() == [[2e-3, 3e-3], [3 * 2e-3, 3 * 3e-3]]


def test_batch_sizes_are_apart() -> None:
    """What was measured at batch size 8 is the time of the whole batch of 8."""
    found = table(entry(seconds=1.0), entry(seconds=5.0, batch_size=8))

    assert seconds(found, linear("a", 16, 8), FP32) == 1.0
    assert seconds(found, linear("a", 16, 8), FP32, batch_size=8) == 5.0
    with pytest.raises(InputError, match=r"batch size 2, .* batch sizes measured at fp32: 1, 8"):
        seconds(found, linear("a", 16, 8), FP32, batch_size=2)


def test_further_axes_of_a_linear_layer_are_tokens() -> None:
    """``[3, 4, 16]`` and ``[12, 16]`` are the same product, and so is a flattened batch."""
    found = table(entry(tokens=12, seconds=7.0))
    deep = Layer("a", "linear", (8, 16), 8, (3, 4, 16), (3, 4, 8), 192, 96, 1536)
    flattened = replace(deep, input_shape=(60, 16), output_shape=(60, 8))  # 5 examples as one

    assert seconds(found, deep, FP32) == 7.0
    assert seconds(found, flattened, FP32) == 7.0


def test_the_phase_decides_which_shape_is_looked_up() -> None:
    """Decoding runs one token, prefill as many as are asked for."""
    found = table(entry(tokens=12, seconds=7.0), entry(seconds=1.0), entry(tokens=3, seconds=2.0))
    layer = linear("a", 16, 8, tokens=12)

    def priced(workload: Workload) -> float:
        return float(found.cost("latency", (layer,), (FP32,), workload).values[0, 0])

    assert priced(Workload()) == 7.0
    assert priced(Workload(phase="decode")) == 1.0
    assert priced(Workload(phase="prefill", tokens=3)) == 2.0


def test_a_measured_shape_runs_only_at_the_precisions_it_was_measured_at() -> None:
    """A format that failed for a shape has no entry, and is not made up from its neighbours."""
    found = table(*grid(range(1, 13)), entry(16, 32, 5, precision=W8), entry(9, 9, precision=W8))

    measured, other = linear("a", 8, 8), linear("b", 7, 7)

    assert math.isnan(seconds(found, measured, W8))
    assert not found.can_run(measured, W8)
    assert found.can_run(other, W8), "of a shape that was never measured the family decides"
    assert not found.can_run(other, W4)
    assert [found.runs_somewhere(candidate) for candidate in (FP32, W8, W4)] == [True, True, False]


@given(
    coefficients=st.tuples(*(st.floats(0.01, 1.0) for _ in range(4))),
    size=st.tuples(st.integers(8, 64), st.integers(8, 32), st.integers(1, 5)),
)
def test_interpolation_recovers_the_formula(
    coefficients: tuple[float, ...], size: tuple[int, int, int]
) -> None:
    """Times that follow the formula are predicted exactly at any size within their range."""
    scaled = np.array(coefficients) * [1e-6, 1e-9, 1e-9, 1e-9]
    found = table(*grid([scaled @ features_of(s) for s in SIZES]))

    layer = linear("a", *size)

    assert seconds(found, layer, FP32) == pytest.approx(scaled @ features_of(size), rel=1e-9)
    if size not in SIZES:
        assert half_width(found, layer, FP32) < 1e-7 * seconds(found, layer, FP32)


def test_interpolation_minimises_relative_errors() -> None:
    """The same as bounded least squares by another algorithm, and never a negative slope."""
    times, entries = noisy()

    found = seconds(table(*entries), linear("a", 20, 20, 3), FP32)

    reference = reference_fit(SIZES, times) @ features_of((20, 20, 3))
    assert found == pytest.approx(reference, rel=1e-5)


def test_uncertainty_of_an_interpolated_shape_is_what_left_out_entries_were_missed_by() -> None:
    """The 95th percentile (the next one up) of the relative errors of leaving one out."""
    times, entries = noisy()
    found = table(*entries)
    layer = linear("a", 20, 20, 3)
    errors = []
    for left_out, size in enumerate(SIZES):
        others = [i for i in range(len(SIZES)) if i != left_out]
        fit = reference_fit([SIZES[i] for i in others], [times[i] for i in others])
        errors.append(abs(fit @ features_of(size) / times[left_out] - 1))

    relative = half_width(found, layer, FP32) / seconds(found, layer, FP32)

    assert relative == pytest.approx(sorted(errors)[math.ceil(0.95 * 11)], rel=1e-4)


def test_uncertainty_of_a_measured_shape_is_its_own() -> None:
    """Half of the interval, times the calls; unknown where none was given."""
    known = entry(seconds=5.0, latency_low_seconds=4.0, latency_high_seconds=7.0)
    found = table(known, entry(4, seconds=5.0))

    assert half_width(found, linear("a", 16, 8, calls=2), FP32) == 3.0
    assert math.isnan(half_width(found, linear("a", 4, 8), FP32))


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((65, 32, 5), r"MACs \(10400\) outside 64 to 10240; elements of the weight \(2080\)"),
        ((64, 33, 1), r"linear: elements of the weight \(2112\) outside 64 to 2048\. Measure"),
        ((8, 8, 60), r"linear: elements read and written \(960\) outside 16 to 480\. Measure"),
        ((4, 8, 1), r"MACs \(32\) outside 64 to 10240"),
    ],
)
def test_outside_of_the_measured_range(size: tuple[int, int, int], said: str) -> None:
    """Refused with layer, shape and range; when allowed, the same formula at unknown error."""
    times, entries = noisy()
    layer = linear("head", *size)
    strict, free = table(*entries), table(*entries, allow_extrapolation=True)

    with pytest.raises(InputError, match=said) as error:
        seconds(strict, layer, FP32)

    assert "layer 'head' (linear" in str(error.value)
    assert "allow_extrapolation" in str(error.value)
    reference = reference_fit(SIZES, times) @ features_of(size)
    assert seconds(free, layer, FP32) == pytest.approx(reference, rel=1e-5)
    assert math.isnan(half_width(free, layer, FP32))


def test_too_few_entries_to_interpolate() -> None:
    """Seven shapes do not determine a formula of four numbers well enough, allowed or not."""
    few = noisy()[1][:7]

    with pytest.raises(InputError, match="takes 8 measured shapes of linear; there are 7"):
        seconds(table(*few, allow_extrapolation=True), linear("a", 9, 9), FP32)


def test_a_kind_that_was_not_measured() -> None:
    """Nothing is known of it: refused, with what there is."""
    conv = Layer("stem", "conv2d", (8, 3, 3, 3), 8, (3, 6, 6), (8, 6, 6), 108, 288, 7776)

    with pytest.raises(InputError, match=r"'stem' is a conv2d 3x3, .* \(there are: linear\)"):
        seconds(table(), conv, FP32)


def test_calls_of_unlike_shapes() -> None:
    """The first call's shape does not stand for the others."""
    layer = Layer("a", "conv1d", (8, 3, 1), 8, (3, 6), (8, 6), 50, 128, 384, calls=2)

    with pytest.raises(InputError, match="reads 50 numbers per example in 2 calls"):
        table().can_run(layer, FP32)


def test_families() -> None:
    """Kind, kernel and grouping; transposed and depthwise kernels count their own MACs."""
    depthwise = Shape("conv2d", (8, 1, 3, 3), (8, 4, 4), (8, 4, 4), groups=8)
    grouped = Shape("conv1d", (8, 2, 1), (4, 5), (8, 5), groups=2)
    transposed = Shape("conv_transpose2d", (4, 6, 2, 2), (4, 3, 3), (6, 6, 6))
    embedding = Shape("embedding", (100, 16), (7,), (7, 16))

    shapes = (depthwise, grouped, transposed, embedding)
    assert [shape.family for shape in shapes] == [
        "depthwise conv2d 3x3",
        "grouped conv1d 1",
        "conv_transpose2d 2x2",
        "embedding",
    ]
    assert [shape.macs for shape in shapes] == [8 * 16 * 9, 8 * 5 * 2, 4 * 9 * 6 * 4, 0]


def test_shapes_agree_with_traced_layers() -> None:
    """MACs and elements of torch's own layers are those that the tracer counts."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
        nn.Flatten(2),
        nn.Linear(64, 10),
        nn.Flatten(),
        nn.Linear(60, 4),
    ).eval()

    layers = mpq.find_layers(net, [torch.randn(2, 3, 8, 8)])

    for layer in layers:
        read_and_written = layer.input_elements + layer.output_elements
        assert Shape.of(layer).features == (layer.macs, layer.num_weights, read_and_written)


BASE = Conversion("fp32", "int8", 1e-6, 1e-9, "measured for a test")
BACK = Conversion("int8", "fp32", 2e-6, 3e-9, "measured for a test")


def chain() -> tuple[Layer, ...]:
    """``a`` feeds ``q`` and ``k``, which read one tensor, and these feed ``b``."""
    return (
        linear("a", 16, 8),
        linear("q", 8, 8, fed_by=("a",)),
        linear("k", 8, 8, fed_by=("a",), input_of="q"),
        linear("b", 8, 16, fed_by=("q", "k")),
    )


def chain_table(**more: Any) -> MeasuredTable:
    """Everything in the chain, at both precisions, one second per layer."""
    sizes = ((16, 8), (8, 8), (8, 16))
    entries = [
        entry(*size, precision=p, seconds=1.0, batch_size=b)
        for size in sizes
        for p in CHOICES
        for b in (1, 2)
    ]
    return table(*entries, **more)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_neighbours_in_other_formats_cost_a_conversion(batch_size: int) -> None:
    """Walking the edges by hand gives the same total, for every assignment."""
    found = chain_table(conversions=(BASE, BACK))

    priced = found.cost("latency", chain(), CHOICES, Workload(batch_size))

    # k reads the tensor that q reads, already converted; b reads one that k wrote last
    edges = [(0, 1), (2, 3)]
    to_int8, to_fp32 = 1e-6 + 1e-9 * 8 * batch_size, 2e-6 + 3e-9 * 8 * batch_size
    by_hand = {(0, 1): to_int8, (1, 0): to_fp32}
    for candidate in itertools.product((0, 1), repeat=4):
        expected = 4.0 + sum(by_hand.get((candidate[i], candidate[j]), 0.0) for i, j in edges)
        assert priced.total(np.array(candidate)) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.sampled_from((0, 1)), min_size=9, max_size=9))
def test_a_residual_stream_is_converted_once_per_reader(candidate: list[int]) -> None:
    """Four blocks of two layers: however many layers wrote the stream, it is one tensor."""
    layers, writers = [linear("stem", 16, 8)], ["stem"]
    for block in range(4):
        layers.append(linear(f"in{block}", 8, 8, fed_by=tuple(writers)))
        layers.append(linear(f"out{block}", 8, 8, fed_by=(f"in{block}",)))
        writers.append(f"out{block}")

    priced = chain_table(conversions=(BASE, BACK)).cost("latency", layers, CHOICES, Workload())

    to_int8, to_fp32 = 1e-6 + 1e-9 * 8, 2e-6 + 3e-9 * 8
    changes = list(itertools.pairwise(candidate))  # every layer reads what the one before it wrote
    by_hand = changes.count((0, 1)) * to_int8 + changes.count((1, 0)) * to_fp32
    assert len(priced.pairs) == 8
    assert priced.total(np.array(candidate)) == pytest.approx(9.0 + by_hand, rel=1e-12)


def test_formats_of_equal_numbers_need_no_conversion() -> None:
    """Weights of 4 bits with float activations read what a float layer writes."""
    entries = [entry(8, 8, precision=p) for p in (FP32, W4)]
    layers = (linear("a", 8, 8), linear("b", 8, 8, fed_by=("a",)))

    priced = table(*entries, conversions=(BASE,)).cost("latency", layers, (FP32, W4), Workload())

    assert [pair.values.tolist() for pair in priced.pairs] == [[[0.0, 0.0], [0.0, 0.0]]]


def test_a_conversion_that_is_missing() -> None:
    """With some conversions known, an unknown one is not free."""
    with pytest.raises(InputError, match=r"no conversion from int8 to fp32 \(it has fp32 to int8"):
        chain_table(conversions=(BASE,)).cost("latency", chain(), CHOICES, Workload())


def test_no_conversion_is_asked_of_what_cannot_run() -> None:
    """A layer that was measured in float only needs no way back from int8."""
    found = table(entry(), entry(8, 8), entry(8, 8, precision=W8), conversions=(BASE,))
    layers = (linear("a", 16, 8), linear("b", 8, 8, fed_by=("a",)))

    priced = found.cost("latency", layers, CHOICES, Workload())

    assert priced.pairs[0].values.tolist() == [[0.0, 1e-6 + 8e-9], [0.0, 0.0]]


def test_without_conversions_there_are_no_pairs() -> None:
    """The sum of the layers, as of a device that converts for nothing."""
    priced = chain_table().cost("latency", chain(), CHOICES, Workload())

    assert priced.pairs == ()
    assert priced.constant == 0.0


def test_fixed_parts_are_paid_in_every_network() -> None:
    """Seconds and joules that no assignment changes."""
    parts = (FixedPart("head", 0.5, 2.0, "chosen"), FixedPart("tail", 0.25, 1.0, "chosen"))
    found = table(entry(energy_joules=4.0), fixed_parts=parts)
    layer = linear("a", 16, 8)

    used = {
        resource: Pricing((layer,), found).amount(resource, {"a": FP32})
        for resource in ("latency", "energy")
    }

    assert used == {"latency": 1e-3 + 0.75, "energy": 4.0 + 3.0}


def test_energy_is_priced_only_where_it_was_measured() -> None:
    """A table of times has no joules, and says so."""
    assert table().resources == ("latency",)
    assert table(entry(energy_joules=1.0)).resources == ("latency", "energy")
    with pytest.raises(UnknownNameError, match="no resource of toy 'energy'"):
        table().cost("energy", (linear("a", 16, 8),), (FP32,), Workload())


def test_numbers_for_people() -> None:
    """Few entries are all shown; of many the range; conversions always."""
    few = table(entry(), conversions=(BASE,)).numbers()
    many = table(*(entry(n, seconds=float(n)) for n in range(1, 31))).numbers()

    assert {name: number.value for name, number in few.items()} == {
        "linear 8x16, input 16, output 8, at fp32 and batch size 1: latency_seconds": 1e-3,
        "fp32 to int8.seconds_per_call": 1e-6,
        "fp32 to int8.seconds_per_element": 1e-9,
    }
    assert {name: number.value for name, number in many.items()} == {
        "fp32.entries": 30,
        "fp32.least_latency_seconds": 1.0,
        "fp32.largest_latency_seconds": 30.0,
    }
    assert all(number.source for number in (*few.values(), *many.values()))
