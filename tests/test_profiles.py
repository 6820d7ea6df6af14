"""Devices and prices: the shipped data, the formulas by hand, and files that are no profile."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles import (
    RESOURCES,
    Pricing,
    Profile,
    Roofline,
    Workload,
    device_names,
    load_device,
    profile_from_dict,
)
from mpq.layer import Layer
from mpq.precision import Precision

DEVICES = ("cortex-m7", "edge-npu", "nvidia-a100", "nvidia-h100", "nvidia-t4")

CONV = Layer("conv", "conv2d", (8, 3, 3, 3), 8, (3, 6, 5), (8, 6, 5), 90, 240, 6480)
DEPTHWISE = Layer("dw", "conv2d", (8, 1, 3, 3), 8, (8, 4, 4), (8, 4, 4), 128, 128, 1152, groups=8)
LINEAR = Layer("fc", "linear", (10, 64), 10, (64,), (10,), 64, 10, 640)
EMBEDDING = Layer("emb", "embedding", (100, 16), 100, (7,), (7, 16), 7, 112, 0)

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


def test_the_five_devices_ship() -> None:
    """The devices that the issue asks for are there, by the names that users type."""
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
        return [k for item in value for k in numbers_without_source(item, key)]
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

    costs = [price(profile, resource, layer, "w8a8") for resource in RESOURCES]

    assert all(math.isfinite(cost) and cost > 0 for cost in costs)


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
    choice = [Precision.parse("w4a8")]
    pricing = Pricing((LINEAR, again))

    stored = pricing.table("weight_bytes", choice).values[:, 0]
    computed = pricing.table("bit_operations", choice).values[:, 0]
    bits = pricing.table("effective_bits", choice).values[:, 0]

    assert stored.tolist() == [360, 0]
    assert computed.tolist() == [640 * 4 * 8] * 2
    assert bits.tolist() == [pytest.approx(360 * 8 / 640), 0]


@pytest.mark.parametrize(
    ("layer", "precision", "expected"),
    [
        (CONV, "w4a8", 6480 * 4 * 8),
        (DEPTHWISE, "w2a4", 1152 * 2 * 4),
        (LINEAR, "w4", 640 * 4 * 32),
        (EMBEDDING, "w8a8", 0),
    ],
    ids=["conv", "depthwise", "linear", "embedding"],
)
def test_bit_operations(layer: Layer, precision: str, expected: int) -> None:
    """MACs times weight bits times activation bits."""
    operations = price(None, "bit_operations", layer, precision)

    assert operations == expected


@pytest.mark.parametrize(
    ("layer", "precision", "expected"),
    [(CONV, "w4a8", 90), (LINEAR, "w8a4", 32), (LINEAR, "w8", 256), (EMBEDDING, "w8a8", 0)],
    ids=["conv", "narrow", "float", "token ids"],
)
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

    costs = [price(profile, resource, LINEAR, "w3a8") for resource in RESOURCES]

    assert all(math.isnan(cost) for cost in costs)


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
            with_value(("formats", 0, "weights"), ["int4", "int9"]),
            "at formats/0/weights/1: 'int9' is not one of",
        ),
        (
            with_value(("formats", 0, "layer_kinds"), ["dense"]),
            "at formats/0/layer_kinds/0: 'dense' is not one of",
        ),
        (
            with_value(("formats", 0, "compute"), "int4"),
            "formats name the arithmetic 'int4', which `compute` lacks (it has int8)",
        ),
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

    with pytest.raises(FileFormatError, match=r"device\.json is not JSON: .*line 1"):
        load_device(str(path))


def test_a_profile_of_bytes(tmp_path: Path) -> None:
    """A binary file is named, not half decoded."""
    path = tmp_path / "device.json"
    path.write_bytes(b"\xff\xfe\x00\x01")

    with pytest.raises(FileFormatError, match=r"cannot read the profile .*device\.json"):
        load_device(str(path))


def test_a_profile_that_is_missing(tmp_path: Path) -> None:
    """A path that leads nowhere is named."""
    with pytest.raises(FileFormatError, match=r"cannot read the profile .*none\.json.*No such"):
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
