"""Devices and prices: the shipped data, the formulas by hand, and files that are no profile."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles import (
    LINEAR_RESOURCES,
    Entry,
    MeasuredTable,
    NetworkProfile,
    Pricing,
    Profile,
    Roofline,
    Workload,
    device_names,
    load_device,
    profile_from_dict,
)
from mpq.network.layer import Layer
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision
from mpq.workflows.task import DEFAULT_CANDIDATES, Task

DEVICES = (
    "bismo-pynq-z1",
    "bitfusion",
    "cortex-m4",
    "cortex-m7",
    "edge-npu",
    "gap8",
    "horowitz-45nm",
    "intel-xeon-8480",
    "nvidia-a100",
    "nvidia-h100",
    "nvidia-h200",
    "nvidia-jetson-agx-orin",
    "nvidia-l4",
    "nvidia-rtx-4090",
    "nvidia-t4",
    "raspberry-pi-5",
    "zcu102-dsp-packing",
)

CONV = Layer("conv", "conv2d", (8, 3, 3, 3), 8, (3, 6, 5), (8, 6, 5), 90, 240, 6480)
DEPTHWISE = Layer("dw", "conv2d", (8, 1, 3, 3), 8, (8, 4, 4), (8, 4, 4), 128, 128, 1152, groups=8)
LINEAR = Layer("fc", "linear", (10, 64), 10, (64,), (10,), 64, 10, 640)
EMBEDDING = Layer("emb", "embedding", (100, 16), 100, (7,), (7, 16), 7, 112, 0)
TOKENS = Layer("proj", "linear", (96, 64), 96, (7, 64), (7, 96), 448, 672, 43008)

PROFILE: dict[str, Any] = {
    "schema_version": 1,
    "name": "toy",
    "title": "Toy",
    "model": "roofline",
    "basis": "estimated",
    "notes": "",
    "memory_bandwidth_bytes_per_s": {"value": 1000.0, "source": "chosen"},
    "launch_overhead_s": {"value": 0.25, "source": "chosen"},
    "memory_energy_j_per_byte": {"value": 2.0, "source": "chosen"},
    "compute": {
        "int8": {
            "peak_operations_per_s": {"value": 500.0, "source": "chosen"},
            "energy_j_per_mac": {"value": 3.0, "source": "chosen"},
        }
    },
    "formats": [
        {
            "weights": ["int4", "int8"],
            "activations": ["int8"],
            "compute": "int8",
            "source": "chosen",
        }
    ],
}


BITS: dict[str, Any] = {
    "peak_bit_operations_per_s": {"value": 1.0, "source": "chosen"},
    "energy_j_per_bit_operation": {"value": 1.0, "source": "chosen"},
    "bit_steps": {"values": [2, 4], "source": "chosen"},
}


def toy(**changes: Any) -> Roofline:
    """The toy device with other top-level entries."""
    profile = profile_from_dict({**copy.deepcopy(PROFILE), **changes})
    assert isinstance(profile, Roofline)
    return profile


def number(value: float) -> dict[str, Any]:
    """A number as a profile's JSON has it."""
    return {"value": value, "source": "chosen"}


def price(
    profile: Profile | None, resource: str, layer: Layer, precision: str, batch_size: int = 1
) -> float:
    """Cost of a single layer at a single precision."""
    table = Pricing((layer,), profile, Workload(batch_size)).table(
        resource, [Precision.parse(precision)]
    )
    return float(table.values[0, 0])


def test_the_devices_ship() -> None:
    """The devices are there, by the names that users type: no name goes away unnoticed."""
    names = device_names()

    assert set(DEVICES) <= set(names)


@pytest.mark.parametrize("name", device_names())
def test_shipped_device_loads_under_its_own_name(name: str) -> None:
    """A shipped file passes its schema, and says what it is and what it leaves out."""
    profile = load_device(name)

    assert profile.name == name
    assert profile.title
    assert profile.notes
    assert profile.basis in ("estimated", "measured")


@pytest.mark.parametrize("name", device_names())
def test_every_number_of_a_device_has_a_source(name: str, root: Path) -> None:
    """Wherever the raw JSON holds a number, a sentence beside it says where it comes from."""
    text = (root / f"mpq/hardware_profiles/devices/{name}.json").read_text(encoding="utf-8")
    data = json.loads(text)

    orphans, sourced = numbers_without_source(data), numbers_with_source(data)

    assert orphans == ["schema_version"]
    assert len(sourced) >= 5
    assert all(len(source.split()) >= 2 for source in sourced)


def numbers_without_source(value: Any, key: str = "", has_source: bool = False) -> list[str]:
    """Keys of numbers that no ``source`` stands beside."""
    if isinstance(value, dict):
        has_source = bool(str(value.get("source", "")).strip())
        return [k for n, v in value.items() for k in numbers_without_source(v, n, has_source)]
    if isinstance(value, list):
        return [k for item in value for k in numbers_without_source(item, key, has_source)]
    return [key] if isinstance(value, int | float) and not has_source else []


def numbers_with_source(value: Any) -> list[str]:
    """Every ``source`` of the file."""
    if isinstance(value, list):
        return [source for item in value for source in numbers_with_source(item)]
    if not isinstance(value, dict):
        return []
    own = [value["source"]] if "source" in value else []
    return own + [source for item in value.values() for source in numbers_with_source(item)]


@pytest.mark.parametrize("name", device_names())
@pytest.mark.parametrize("layer", [LINEAR, CONV, DEPTHWISE], ids=lambda layer: str(layer.name))
def test_w8a8_runs_on_every_device(name: str, layer: Layer) -> None:
    """Relative limits refer to w8a8, so that every device prices linear and conv2d layers at it."""
    profile = load_device(name)

    costs = [
        price(profile, resource, layer, "w8a8")
        for resource in ("latency", "energy", *LINEAR_RESOURCES)
    ]

    assert all(math.isfinite(cost) and cost > 0 for cost in costs)


@pytest.mark.parametrize("name", device_names())
def test_every_number_of_a_device_is_one(name: str) -> None:
    """What ``--show`` prints is finite, has a source, and only an overhead may be 0."""
    numbers = load_device(name).numbers()

    assert all(math.isfinite(number.value) for number in numbers.values())
    assert all(number.source.strip() for number in numbers.values())
    assert [key for key, n in numbers.items() if n.value <= 0] in ([], ["launch_overhead_s"])
    assert all(0 < n.value <= 1 for key, n in numbers.items() if key.endswith("utilisation"))


@pytest.mark.parametrize("name", device_names())
@pytest.mark.parametrize(
    "layer", [LINEAR, CONV, DEPTHWISE, EMBEDDING, TOKENS], ids=lambda x: x.name
)
def test_a_device_prices_what_it_can_run(name: str, layer: Layer) -> None:
    """At every default precision a device gives a positive number, or nan where it cannot run."""
    profile = load_device(name)
    candidates = [Precision.parse(text) for text in DEFAULT_CANDIDATES]

    for resource in profile.resources:
        found = profile.cost(resource, (layer,), candidates, Workload()).values[0]
        able = [profile.can_run(layer, candidate) for candidate in candidates]

        assert np.isnan(found).tolist() == [not can for can in able]
        assert (found[able] > 0).all()


@pytest.mark.parametrize("name", device_names())
@pytest.mark.parametrize("resource", ["latency", "energy"])
def test_more_work_costs_no_less(name: str, resource: str) -> None:
    """Neither latency nor energy falls when examples, or tokens of an example, are added."""
    profile = load_device(name)
    candidates = [c for c in map(Precision.parse, DEFAULT_CANDIDATES) if profile.can_run(TOKENS, c)]
    batches = [Workload(size) for size in (1, 2, 16, 256)]
    prompts = [Workload(1, "decode"), *(Workload(1, "prefill", n) for n in (1, 2, 64, 4096))]

    for workloads in (batches, prompts):
        costs = [profile.cost(resource, (TOKENS,), candidates, w).values for w in workloads]

        assert all((np.diff(np.stack(costs), axis=0) >= 0).ravel())
    assert (costs[0] == costs[1]).all(), "decoding a token is a prompt of one"


@pytest.mark.parametrize("name", device_names())
def test_nobody_knows_how_wrong_a_datasheet_is(name: str) -> None:
    """An estimated device has no interval: nan, not 0."""
    profile = load_device(name)

    found = profile.uncertainty("latency", (LINEAR,), [Precision.parse("w8a8")], Workload())

    assert profile.basis == "estimated"
    assert np.isnan(found.values).all()


def bit_serial(steps: list[int], **changes: Any) -> Roofline:
    """The toy device whose arithmetic counts bit operations, memory being fast and free."""
    entry = {
        "peak_bit_operations_per_s": number(6400.0),
        "energy_j_per_bit_operation": number(0.5),
        "bit_steps": {"values": steps, "source": "chosen"},
        **changes,
    }
    formats = [{**PROFILE["formats"][0], "weights": ["int2", "int3", "int5", "int8"]}]
    formats[0]["activations"] = ["int4", "int7", "int8"]
    return toy(
        compute={"int8": entry},
        formats=formats,
        memory_bandwidth_bytes_per_s=number(1e15),
        memory_energy_j_per_byte=number(0.0),
        launch_overhead_s=number(0.0),
    )


@pytest.mark.parametrize(
    ("precision", "composed", "serial"),
    [("w8a8", 64, 64), ("w5a8", 64, 40), ("w3a8", 32, 24), ("w3a4", 16, 12), ("w2a7", 16, 14)],
)
def test_bit_operations_set_the_rate(precision: str, composed: int, serial: int) -> None:
    """Widths are rounded up to steps; a MAC then takes their product of bit operations."""
    steps = {composed: bit_serial([8, 2, 4]), serial: bit_serial(list(range(1, 9)))}

    for bit_operations, profile in steps.items():
        seconds, joules = (price(profile, r, CONV, precision) for r in ("latency", "energy"))

        assert seconds == pytest.approx(6480 * bit_operations / 6400)
        assert joules == pytest.approx(6480 * bit_operations * 0.5)


def test_bit_fusion_by_its_paper() -> None:
    """512 fusion units at 500 MHz: one 8 x 8 or sixteen 2 x 2 MACs each, in every cycle."""
    layer = Layer("fc", "linear", (512, 512), 512, (512,), (512,), 512, 512, 512**2)
    profile = load_device("bitfusion")

    wide, narrow = (price(profile, "latency", layer, p, 10**6) for p in ("w8a8", "w2a2"))

    macs = 512**2 * 10**6
    assert wide == pytest.approx(macs / (512 * 5e8) + 1e-6)
    assert narrow == pytest.approx(macs / (512 * 16 * 5e8) + 1e-6)


def test_dsp_packing_by_its_white_papers() -> None:
    """Two int8 or four int4 MACs per slice and cycle; w2a8 takes the slice as w8a8 does."""
    profile = load_device("zcu102-dsp-packing")

    rates = {p: macs_per_s(profile, p) for p in ("w8a8", "w2a8", "w4a4")}

    assert rates == pytest.approx(
        {"w8a8": 2520 * 2 * 3e8, "w2a8": 2520 * 2 * 3e8, "w4a4": 2520 * 4 * 3e8}, rel=1e-4
    )


def macs_per_s(profile: Profile, precision: str) -> float:
    """Rate of a layer so large that arithmetic is all that counts."""
    layer = Layer("fc", "linear", (4096, 4096), 4096, (4096,), (4096,), 4096, 4096, 4096**2)
    batch_size = 10**6
    return 4096**2 * batch_size / price(profile, "latency", layer, precision, batch_size)


@pytest.mark.parametrize(
    ("name", "dense"),
    [
        ("nvidia-l4", {"w8a8": 485 / 2, "fp16": 242 / 2, "fp8": 485 / 2}),
        ("nvidia-h200", {"w8a8": 3958 / 2, "w4g128a16": 1979 / 2}),
        ("nvidia-jetson-agx-orin", {"w8a8": 170 / 2}),
        ("nvidia-rtx-4090", {"w4a4": 1321.2, "w8a8": 660.6, "fp16": 165.2}),
        ("intel-xeon-8480", {"w8a8": 2048 * 56 * 2e-3, "bf16": 1024 * 56 * 2e-3}),
    ],
)
def test_rates_are_dense(name: str, dense: dict[str, float]) -> None:
    """Tera-operations per second, as printed; half of what a datasheet states with sparsity."""
    profile = load_device(name)

    rates = {precision: 2e-12 * macs_per_s(profile, precision) for precision in dense}

    assert rates == pytest.approx(dense, rel=1e-3)


def test_utilisation_slows_arithmetic_and_memory() -> None:
    """Half of the peak takes twice as long, and costs the same energy."""
    half = {"utilisation": number(0.5)}
    entry = {**PROFILE["compute"]["int8"], **half}
    slow_arithmetic = toy(compute={"int8": entry}, memory_bandwidth_bytes_per_s=number(1e9))
    slow_memory = toy(bandwidth_utilisation=number(0.5))
    slow_bits = bit_serial([8], **half)

    arithmetic, memory, bits = (
        price(profile, "latency", layer, "w8a8")
        for profile, layer in ((slow_arithmetic, CONV), (slow_memory, EMBEDDING), (slow_bits, CONV))
    )

    assert arithmetic == pytest.approx(2 * 2 * 6480 / 500 + 0.25)
    assert memory == pytest.approx(2 * (7 * (16 + 4) + 112) / 1000 + 0.25)
    assert bits == pytest.approx(2 * 6480 * 64 / 6400)
    assert price(slow_arithmetic, "energy", CONV, "w8a8") == price(toy(), "energy", CONV, "w8a8")


def test_default_candidates_are_what_was_measured() -> None:
    """Of an estimated device those of mpq that it runs; asked-for ones are taken as they are."""
    measured = tuple(map(Precision.parse, ("fp32", "w8a8d", "w4g32a32")))
    shapes = [("linear", (8, 16), (16,), (8,), 1, 1, precision, 1e-3) for precision in measured]
    about = ("toy", "Toy", "", "measured for a test", {"os": "x"})
    table = MeasuredTable(*about, tuple(Entry(*shape) for shape in shapes))
    seconds = CostTable("latency", "seconds", ("fc",), measured, np.ones((1, 3)))
    network = NetworkProfile("toy", "Toy", "", ("fc linear 8x16",), 1, seconds, seconds, {}, {})

    def candidates(device: Any, given: list[str] | None = None) -> tuple[Precision, ...]:
        return Task(nn.Identity(), [], device=device, candidates=given).precisions

    assert candidates(table) == candidates(network) == measured
    assert candidates(table, ["w8a8d"]) == measured[1:2]
    assert list(map(str, candidates("cortex-m7"))) == ["w2a8", "w4a4", "w4a8", "w8a8"]
    assert candidates(None) == tuple(map(Precision.parse, DEFAULT_CANDIDATES))


def test_memories_are_numbers_too() -> None:
    """Flash, RAM and the size of the code are shown where a profile has them."""
    sizes = {"flash_bytes": 2048.0, "ram_bytes": 512.0, "code_bytes": 128.0}
    numbers = toy(**{key: number(value) for key, value in sizes.items()}).numbers()

    assert {key: numbers[key].value for key in sizes} == sizes
    assert "ram_bytes" not in toy().numbers()


def test_t4_latency_of_a_linear_layer_by_its_datasheet() -> None:
    """A layer of 4096 x 4096 at w8a8: 130 TOPS, 320 GB/s and 2.7 us per launch, by hand."""
    layer = Layer("fc", "linear", (4096, 4096), 4096, (4096,), (4096,), 4096, 4096, 4096**2)
    traffic = 4096 * 4096 + 4096 * 4 + 4096 + 4096  # bytes: weights, scales, input, output

    small = price(load_device("nvidia-t4"), "latency", layer, "w8a8", batch_size=1)
    large = price(load_device("nvidia-t4"), "latency", layer, "w8a8", batch_size=4096)

    assert small == pytest.approx(traffic / 320e9 + 2.7e-6)
    assert large == pytest.approx(2 * 4096**3 / 130e12 + 2.7e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_latency_where_arithmetic_is_the_bound(batch_size: int) -> None:
    """Two operations per MAC at the peak rate, and one launch, where memory is fast enough."""
    profile = toy(memory_bandwidth_bytes_per_s=number(1e9))

    seconds = price(profile, "latency", CONV, "w8a8", batch_size)

    assert seconds == pytest.approx(batch_size * 2 * 6480 / 500 + 0.25)


@pytest.mark.parametrize(
    ("layer", "precision", "batch_size", "traffic"),
    [
        (CONV, "w8a8", 1, 8 * 27 + 8 * 4 + 90 + 240),
        (CONV, "w4a8", 1, 8 * 27 / 2 + 8 * 4 + 90 + 240),
        (CONV, "w4a8", 5, 8 * 27 / 2 + 8 * 4 + 5 * (90 + 240)),
        (DEPTHWISE, "w8a8", 1, 8 * 9 + 8 * 4 + 128 + 128),
        (LINEAR, "w8a8", 2, 640 + 10 * 4 + 2 * (64 + 10)),
        (LINEAR, "w4g32a8", 1, 320 + 20 * 2 + 64 + 10),
        (EMBEDDING, "w8a8", 1, 7 * (16 + 4) + 112),
        (EMBEDDING, "w4a8", 3, 3 * (7 * (8 + 4) + 112)),
    ],
    ids=lambda value: value.name if isinstance(value, Layer) else str(value),
)
def test_latency_where_memory_is_the_bound(
    layer: Layer, precision: str, batch_size: int, traffic: float
) -> None:
    """Weights once, inputs and outputs per example; an embedding reads the rows it looks up."""
    compute = {"int8": {"peak_operations_per_s": number(1e12), "energy_j_per_mac": number(0)}}
    profile = toy(compute=compute)

    seconds = price(profile, "latency", layer, precision, batch_size)

    assert seconds == pytest.approx(traffic / 1000 + 0.25)


def test_latency_of_a_layer_that_is_called_twice() -> None:
    """Each call reads the weight again and is launched again."""
    layer = Layer("fc", "linear", (10, 64), 10, (64,), (10,), 128, 20, 1280, calls=2)
    compute = {"int8": {"peak_operations_per_s": number(1e12), "energy_j_per_mac": number(0)}}
    profile = toy(compute=compute)

    seconds = price(profile, "latency", layer, "w8a8")

    assert seconds == pytest.approx((2 * (640 + 40) + 128 + 20) / 1000 + 2 * 0.25)


@pytest.mark.parametrize(
    ("layer", "batch_size", "macs", "traffic"),
    [
        (CONV, 1, 6480, 8 * 27 + 8 * 4 + 90 + 240),
        (DEPTHWISE, 4, 4 * 1152, 8 * 9 + 8 * 4 + 4 * 256),
        (LINEAR, 2, 2 * 640, 640 + 40 + 2 * 74),
        (EMBEDDING, 1, 0, 7 * (16 + 4) + 112),
    ],
    ids=["conv", "depthwise", "linear", "embedding"],
)
def test_energy_adds_arithmetic_and_memory(
    layer: Layer, batch_size: int, macs: int, traffic: float
) -> None:
    """Joules per MAC and joules per byte add up; there is no overlap to gain from."""
    profile = toy()

    joules = price(profile, "energy", layer, "w8a8", batch_size)

    assert joules == pytest.approx(3 * macs + 2 * traffic)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("w8", 640 + 10 * 4),  # one fp32 scale per output channel
        ("w4", 320 + 10 * 4),
        ("w4t", 320 + 4),
        ("w3", 240 + 10 * 4),
        ("w4z", 325 + 10 * 4),  # and one 4-bit zero point
        ("w4g16", 320 + 40 * 2),  # one fp16 scale per group
        ("w16", 1280),
        ("fp8", 640 + 10 * 4),
        ("fp32", 2560),
    ],
)
def test_weight_bytes_count_the_scales(precision: str, expected: int) -> None:
    """Bytes of a 10 x 64 weight, packed, with scales and zero points."""
    size = price(None, "weight_bytes", LINEAR, precision)

    assert size == expected


def test_weight_bytes_are_whole() -> None:
    """Nine weights of 3 bits and a scale are 59 bits: 8 bytes."""
    layer = Layer("odd", "linear", (1, 9), 1, (9,), (1,), 9, 1, 9)

    size = price(None, "weight_bytes", layer, "w3")

    assert size == 8


def test_a_shared_parameter_is_stored_once() -> None:
    """The layer that reuses a weight stores nothing, yet computes like any other."""
    again = Layer("head", "linear", (10, 64), 10, (64,), (10,), 64, 10, 640, weight_of="fc")
    candidate = [Precision.parse("w4a8")]
    pricing = Pricing((LINEAR, again))

    stored = pricing.table("weight_bytes", candidate).values[:, 0]
    computed = pricing.table("bit_operations", candidate).values[:, 0]
    bits = pricing.table("effective_bits", candidate).values[:, 0]

    assert stored.tolist() == [360, 0]
    assert computed.tolist() == [640 * 4 * 8] * 2
    assert bits.tolist() == [pytest.approx(360 * 8 / 640), 0]


@pytest.mark.parametrize(
    ("layer", "precision", "expected"),
    [
        (CONV, "w4a8", 6480 * 4 * 8),
        (DEPTHWISE, "w2a4", 1152 * 2 * 4),
        (LINEAR, "w4", 640 * 4 * 24),
        (CONV, "fp32", 6480 * 24 * 24),
        (CONV, "fp16", 6480 * 11 * 11),
        (CONV, "bf16", 6480 * 8 * 8),
        (LINEAR, "fp8", 640 * 4 * 4),
        (LINEAR, "wfp8_e5m2afp8", 640 * 3 * 4),
        (LINEAR, "w8abf16", 640 * 8 * 8),
        (LINEAR, "we3m0a8", 640 * 1 * 8),
        (LINEAR, "mxfp4", 640 * 2 * 24),
        (LINEAR, "wmxint8a8", 640 * 8 * 8),
        (LINEAR, "wbinarya8", 640 * 1 * 8),
        (LINEAR, "wternarya16", 640 * 2 * 11),
        (LINEAR, "wnf4g64a16", 640 * 11 * 11),
        (LINEAR, "wcb3a16", 640 * 11 * 11),
        (LINEAR, "w8aint16", 640 * 8 * 16),
        (EMBEDDING, "w8a8", 0),
    ],
    ids=lambda value: value.name if isinstance(value, Layer) else str(value),
)
def test_bit_operations(layer: Layer, precision: str, expected: int) -> None:
    """MACs times the bits of integers, and those of floats that are multiplied."""
    operations = price(None, "bit_operations", layer, precision)

    assert operations == expected


@pytest.mark.parametrize(
    ("layer", "precision", "expected"),
    [(CONV, "w4a8", 90), (LINEAR, "w8a4", 32), (LINEAR, "w8", 256), (LINEAR, "w8aint16s", 128),
     (EMBEDDING, "w8a8", 0)],
    ids=["conv", "narrow", "float", "int16", "token ids"],
)  # fmt: skip
def test_activation_bytes(layer: Layer, precision: str, expected: float) -> None:
    """Bytes of a layer's input for one example; token ids are no activation."""
    size = price(None, "activation_bytes", layer, precision)

    assert size == expected


def test_effective_bits_of_uniform_w4_include_the_scales() -> None:
    """Over the network: 4 bits per weight, and 32 bits per output channel spread over them."""
    table = Pricing((CONV, LINEAR)).table("effective_bits", [Precision.parse("w4a8")])

    assert table.values.sum() == pytest.approx(4 + 32 * (8 + 10) / (216 + 640))


def test_a_format_that_the_device_lacks_costs_nan() -> None:
    """Every resource of a device says so, bytes too: the layer cannot run there at all."""
    profile = toy()

    costs = [
        price(profile, resource, LINEAR, "w3a8")
        for resource in ("latency", "energy", *LINEAR_RESOURCES)
    ]

    assert all(math.isnan(cost) for cost in costs)


@pytest.mark.parametrize(
    ("device", "layer", "precision", "runs"),
    [
        ("cortex-m7", CONV, "w8aint16s", True),
        ("cortex-m7", CONV, "wint16aint16", False),
        ("cortex-m4", CONV, "w8aint16s", False),
        ("edge-npu", CONV, "wint16aint16", True),
        ("edge-npu", CONV, "fp16", True),
        ("nvidia-t4", CONV, "w8aint16", False),
        ("bitfusion", CONV, "w4aint16", True),
    ],
)
def test_integers_of_16_bits_run_where_a_device_says_so(
    device: str, layer: Layer, precision: str, runs: bool
) -> None:
    """As arithmetic of their own: no device takes them for fp16."""
    cost = price(load_device(device), "latency", layer, precision)

    assert math.isnan(cost) is not runs


def test_an_activation_that_the_device_lacks_costs_nan() -> None:
    """Both formats of a precision must be there."""
    profile = toy()

    latency = price(profile, "latency", LINEAR, "w8a4")

    assert math.isnan(latency)


def test_formats_can_be_restricted_to_kinds_of_layers() -> None:
    """Where formats are for linear layers, a convolution cannot run in them."""
    formats = [{**PROFILE["formats"][0], "layer_kinds": ["linear"]}]
    profile = toy(formats=formats)

    linear, conv = (price(profile, "latency", layer, "w8a8") for layer in (LINEAR, CONV))

    assert math.isfinite(linear)
    assert math.isnan(conv)


def test_the_first_entry_that_fits_counts() -> None:
    """Of two entries for one format, the arithmetic of the first is used."""
    fast = {"peak_operations_per_s": number(1e12), "energy_j_per_mac": number(7.0)}
    first = {**PROFILE["formats"][0], "compute": "fast"}
    profile = toy(compute={**PROFILE["compute"], "fast": fast}, formats=[first])
    both = toy(compute={**PROFILE["compute"], "fast": fast}, formats=[first, PROFILE["formats"][0]])

    expected, found = (price(p, "energy", LINEAR, "w8a8") for p in (profile, both))

    assert found == expected


def test_a_profile_is_read_from_a_file(tmp_path: Path) -> None:
    """``--device my.json`` gives the device that the file describes."""
    path = tmp_path / "my.json"
    path.write_text(json.dumps(PROFILE), encoding="utf-8")

    profile = load_device(str(path))

    assert profile == toy()
    assert profile.numbers()["launch_overhead_s"].value == 0.25


def without(path: tuple[str, ...]) -> dict[str, Any]:
    """The toy profile without one entry."""
    data = copy.deepcopy(PROFILE)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


def with_value(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The toy profile with one entry changed."""
    data = copy.deepcopy(PROFILE)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without(("launch_overhead_s",)), "'launch_overhead_s' is a required property"),
        (
            {**without(("launch_overhead_s",)), "launch_overhead": number(1.0)},
            "launch_overhead",
        ),
        (
            without(("memory_energy_j_per_byte", "source")),
            "at memory_energy_j_per_byte: 'source' is a required property",
        ),
        (
            with_value(("launch_overhead_s", "source"), ""),
            "at launch_overhead_s/source: ",
        ),
        (
            without(("compute", "int8", "energy_j_per_mac", "source")),
            "at compute/int8/energy_j_per_mac: 'source' is a required property",
        ),
        (
            with_value(("launch_overhead_s", "value"), -1e-6),
            "at launch_overhead_s/value: -1e-06 is less than the minimum of 0",
        ),
        (
            with_value(("memory_bandwidth_bytes_per_s", "value"), 0),
            "at memory_bandwidth_bytes_per_s/value: 0 is less than or equal to the minimum of 0",
        ),
        (
            with_value(("launch_overhead_s",), 1e-6),
            "at launch_overhead_s: 1e-06 is not of type 'object'",
        ),
        (
            with_value(("formats", 0, "weights"), ["int4", "int17"]),
            "at formats/0/weights/1: 'int17' is not one of",
        ),
        (
            with_value(("formats", 0, "layer_kinds"), ["dense"]),
            "at formats/0/layer_kinds/0: 'dense' is not one of",
        ),
        (
            with_value(("formats", 0, "compute"), "int4"),
            "formats name the arithmetic 'int4', which `compute` lacks (it has int8)",
        ),
        (
            with_value(("compute", "int8", "utilisation"), number(1.01)),
            "at compute/int8/utilisation/value: 1.01 is greater than the maximum of 1",
        ),
        (
            with_value(("bandwidth_utilisation",), number(0)),
            "at bandwidth_utilisation/value: 0 is less than or equal to the minimum of 0",
        ),
        (
            with_value(("memory_energy_j_per_byte", "value"), math.nan),
            "toy: memory_energy_j_per_byte is nan, not a number",
        ),
        (
            with_value(("compute", "int8", "peak_operations_per_s", "value"), math.inf),
            "toy: int8.peak_operations_per_s is inf, not a number",
        ),
        (
            with_value(("compute", "int8", "peak_bit_operations_per_s"), number(1)),
            "at compute/int8: 'energy_j_per_bit_operation' is a required property",
        ),
        (
            with_value(("compute", "int8"), {**BITS, **PROFILE["compute"]["int8"]}),
            "compute/int8 states its rate twice: give peak_operations_per_s and energy_j_per_mac, "
            "or peak_bit_operations_per_s, energy_j_per_bit_operation, bit_steps",
        ),
        (
            with_value(("compute", "int8"), {**BITS, "bit_steps": {"values": [2, 4]}}),
            "at compute/int8/bit_steps: 'source' is a required property",
        ),
        (
            with_value(("compute", "int8"), BITS),
            "toy: int8: its widest bit step is 4, too narrow for int8",
        ),
        (
            {
                **with_value(("compute", "int8"), BITS),
                "formats": [{**PROFILE["formats"][0], "weights": ["fp8_e4m3"]}],
            },
            "toy: int8 counts bit operations, which are of integers; got fp8_e4m3",
        ),
        (with_value(("compute", "int8"), {}), "'peak_operations_per_s' is a required property"),
        (with_value(("flash",), number(1)), "unknown key 'flash' (did you mean 'flash_bytes'?)"),
        (with_value(("schema_version",), 2), "schema version 2; this mpq reads version 1: update"),
        (with_value(("basis",), "guessed"), "at basis: 'guessed' is not one of"),
        ([], "at the top level: [] is not of type 'object'"),
    ],
    ids=[
        "missing key",
        "key without unit",
        "missing source",
        "empty source",
        "missing source inside",
        "negative",
        "zero bandwidth",
        "bare number",
        "unknown format",
        "unknown layer kind",
        "unknown arithmetic",
        "utilisation above 1",
        "no bandwidth used",
        "nan",
        "infinite",
        "half of a bit rate",
        "two rates",
        "steps without source",
        "steps too narrow",
        "steps for floats",
        "no rate",
        "memory without unit",
        "future version",
        "unknown basis",
        "no object",
    ],
)
def test_a_file_that_is_no_profile_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    """The error names the file, the place and the reason."""
    path = tmp_path / "device.json"
    path.write_text(json.dumps(data), encoding="utf-8")

    with pytest.raises(FileFormatError, match=re.escape(message)) as caught:
        load_device(str(path))

    assert str(path) in str(caught.value)


def test_a_profile_that_is_not_json(tmp_path: Path) -> None:
    """A file of another format is named, with the place where it stops being JSON."""
    path = tmp_path / "device.json"
    path.write_text("name: toy", encoding="utf-8")

    with pytest.raises(FileFormatError, match=r"device\.json: not JSON: .*line 1"):
        load_device(str(path))


def test_a_profile_of_bytes(tmp_path: Path) -> None:
    """A binary file is named, not half decoded."""
    path = tmp_path / "device.json"
    path.write_bytes(b"\xff\xfe\x00\x01")

    with pytest.raises(FileFormatError, match=r"cannot read .*device\.json"):
        load_device(str(path))


def test_a_profile_that_is_missing(tmp_path: Path) -> None:
    """A path that leads nowhere is named."""
    with pytest.raises(FileFormatError, match=r"cannot read .*none\.json.*No such"):
        load_device(str(tmp_path / "none.json"))


def test_an_unknown_device_gets_a_suggestion() -> None:
    """A misspelled device is answered with the closest name and with all names."""
    with pytest.raises(
        UnknownNameError, match=r"no device 'nvidia-t5'; did you mean 'nvidia-t4'\?.*cortex-m7"
    ):
        load_device("nvidia-t5")


@pytest.mark.parametrize("resource", ["latency", "energy"])
def test_latency_and_energy_need_a_device(resource: str) -> None:
    """Without a device only resources that need none can be priced, and the error says so."""
    pricing = Pricing((LINEAR,))

    with pytest.raises(InputError, match=rf"{resource} needs a device.*mpq devices"):
        pricing.table(resource, [Precision.parse("w8a8")])

    assert resource not in pricing.resources


@pytest.mark.parametrize("profile", [None, toy()], ids=["without device", "with device"])
def test_an_unknown_resource_is_refused(profile: Profile | None) -> None:
    """A misspelled resource is answered with the closest one."""
    pricing = Pricing((LINEAR,), profile)

    with pytest.raises(UnknownNameError, match=r"'weight_byte'; did you mean 'weight_bytes'\?"):
        pricing.table("weight_byte", [Precision.parse("w8a8")])


def test_a_batch_has_an_example() -> None:
    """A batch size below 1 is refused before anything is priced."""
    with pytest.raises(InputError, match="batch size is at least 1; got 0"):
        Workload(0)
