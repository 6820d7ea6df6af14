"""Measurements that others published, read from their files into a ``MeasuredTable``.

``hawqv3-t4``
    Kernel times of HAWQ-V3 (Yao et al., 2021, arXiv:2011.10680) from its TVM tuning logs on an
    NVIDIA T4. Columns: model, line, task, act_dtype, input_shape, weight_shape, stride, time_ms,
    error_no. The layouts follow from the shapes: ``HWNC`` inputs are ``[H, W, N, C]`` and ``nhwc``
    inputs ``[N, H, W, C]``, weights ``[kH, kW, out, in]``, dense ones ``[out, in]``. Spatial sizes
    hold the padding already; ResNet's is ``kernel // 2``, and is taken off. ``uint4`` is w4a4,
    ``int8`` w8a8. A line whose error_no is not 0 is left out; equal kernels are averaged.
``apq-bitfusion``
    The table of a BitFusion accelerator (Sharma et al., 2018, arXiv:1712.01507) that APQ (Wang
    et al., 2020, arXiv:2006.08509) searches with: cin, cout, in_hw, k, stride, padding, groups,
    w_bits, a_bits, latency_ms, energy_mJ. Units are the file's: APQ states none. Batch size 1. The
    head and the tail of its networks, which no layer of the table is, may be given beside it.
``haq-cycles``
    MobileNetV2 on the accelerator that HAQ (Wang et al., 2019, arXiv:1811.08886) searches with:
    layer, inferred_name, cin, cout, k, stride, groups, out_hw, macs, w_bits, a_bits, latency. No
    unit is stated; the numbers are taken as a simulator's cycles for a batch of 16, and need a
    clock to become seconds. Formats of 1 bit, which mpq does not have, are left out.
``csv``
    Columns as in ``csv_file``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import fsum, isfinite
from pathlib import Path
from typing import Any, Final, final

from mpq._support.json_object import parsed_json, read_text
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles.measured_table.csv_file import Row, cell, read_rows
from mpq.hardware_profiles.measured_table.entry import Entry, Key
from mpq.hardware_profiles.measured_table.overhead import FixedPart
from mpq.hardware_profiles.measured_table.profile import MeasuredTable
from mpq.quantization.precision import Precision

T4_COLUMNS: Final = (
    "model", "line", "task", "act_dtype", "input_shape", "weight_shape", "stride", "time_ms",
    "error_no",
)  # fmt: skip
APQ_COLUMNS: Final = (
    "cin", "cout", "in_hw", "k", "stride", "padding", "groups", "w_bits", "a_bits", "latency_ms",
    "energy_mJ",
)  # fmt: skip
HAQ_COLUMNS: Final = (
    "layer", "inferred_name", "cin", "cout", "k", "stride", "groups", "out_hw", "macs", "w_bits",
    "a_bits", "latency",
)  # fmt: skip
HAQ_BATCH_SIZE: Final = 16
_T4_SOURCE: Final = "Yao et al., HAWQ-V3, ICML 2021, arXiv:2011.10680: TVM tuning logs on a T4"
_APQ_SOURCE: Final = "Wang et al., APQ, CVPR 2020, arXiv:2006.08509: BitFusion lookup table"
_HAQ_SOURCE: Final = "Wang et al., HAQ, CVPR 2019, arXiv:1811.08886: MobileNetV2 lookup table"
_T4_FORMATS: Final = {"uint4": Precision.parse("w4a4"), "int8": Precision.parse("w8a8")}


@final
@dataclass(frozen=True)
class Published:
    """A file to convert, and what it does not say itself.

    Args:
        text: Everything that the file holds.
        name: What the device is to be called.
        clock_hz: Clock of the accelerator, where the file counts cycles.
        head_tail: Text of APQ's file of heads and tails.

    Raises:
        InputError: If the clock is not positive and finite.
    """

    text: str
    name: str
    clock_hz: float | None = None
    head_tail: str | None = None

    def __post_init__(self) -> None:
        if self.clock_hz is not None and not (isfinite(self.clock_hz) and self.clock_hz > 0):
            raise InputError(
                f"the clock must be positive and finite, in hertz; got {self.clock_hz}"
            )


def convert(converter: str, file: Published) -> MeasuredTable:
    """A profile from a file in a published layout.

    Raises:
        UnknownNameError: If there is no such converter.
        InputError: If the converter needs something that is not given, or has no use for something
            that is.
        FileFormatError: If the file has another layout.
    """
    if converter not in CONVERTERS:
        raise UnknownNameError("converter", converter, CONVERTERS)
    # Refused, not ignored: a clock that changes nothing would be taken as applied.
    if file.clock_hz is not None and converter != "haq-cycles":
        raise InputError(f"{converter} counts no cycles: leave the clock out")
    if file.head_tail is not None and converter != "apq-bitfusion":
        raise InputError(f"{converter} has no head and tail: leave that file out")
    return CONVERTERS[converter](file)


def import_table(
    converter: str,
    path: Path,
    name: str,
    clock_hz: float | None = None,
    head_tail: Path | None = None,
    allow_extrapolation: bool = False,
) -> MeasuredTable:
    """A profile from a published file on disk.

    Args:
        converter: A key of ``CONVERTERS``.
        path: The file in the converter's layout.
        name: What the device is to be called.
        clock_hz: See ``Published``.
        head_tail: See ``Published``.
        allow_extrapolation: See ``MeasuredTable``.

    Raises:
        FileFormatError: If a file cannot be read, or has another layout; names the file.
        InputError: See ``convert``.
    """
    beside = None if head_tail is None else read_text(head_tail)
    file = Published(read_text(path), name, clock_hz, beside)
    try:
        return replace(convert(converter, file), allow_extrapolation=allow_extrapolation)
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error


def hawqv3_kernels(text: str) -> tuple[tuple[Entry, ...], int]:
    """Every kernel of HAWQ-V3's T4 logs, equal ones apart, and how many failed there.

    Raises:
        FileFormatError: If the file has another layout.
    """
    # A list, as rows are gone through twice and counted.
    rows = list(read_rows(text, T4_COLUMNS))
    # The time of a kernel that failed is a placeholder, far above any real one.
    ran = [(line, row) for line, row in rows if cell(line, row, "error_no", int) == 0]
    return tuple(_t4_entry(line, row) for line, row in ran), len(rows) - len(ran)


def _t4_entry(line: int, row: Row) -> Entry:
    def sizes(count: int) -> Callable[[str], list[int]]:
        return lambda text: _sizes(text, count)

    def number_format(text: str) -> Precision:
        if text not in _T4_FORMATS:
            raise UnknownNameError("format of HAWQ-V3's kernels", text, _T4_FORMATS)
        return _T4_FORMATS[text]

    task = row["task"]
    read: tuple[int, ...]
    written: tuple[int, ...]
    if task.startswith("dense"):
        batch_size, features = cell(line, row, "input_shape", sizes(2))
        weight = cell(line, row, "weight_shape", sizes(2))
        kind, read, written = "linear", (features,), (weight[0],)
    elif task.startswith(("conv2d_HWNC", "conv2d_nhwc")):
        first, second, third, channels = cell(line, row, "input_shape", sizes(4))
        # HWNC, for tensor cores, has the batch next to the channels; nhwc has it first.
        is_hwnc = task.startswith("conv2d_HWNC")
        height, width, batch_size = (first, second, third) if is_hwnc else (second, third, first)
        rows, columns, outputs, inputs = cell(line, row, "weight_shape", sizes(4))
        # As for sizes, rows come before columns.
        stride, across = cell(line, row, "stride", sizes(2))
        weight = [outputs, inputs, rows, columns]
        # The file's sizes are padded; a traced layer's input is not, and must be found by it.
        read = (channels, height - 2 * (rows // 2), width - 2 * (columns // 2))
        written = (outputs, (height - rows) // stride + 1, (width - columns) // across + 1)
        kind = "conv2d"
    else:
        raise FileFormatError(f"line {line}: expected a conv2d or dense task; got {task!r}")
    return Entry(
        kind, tuple(weight), read, written, 1, batch_size,
        cell(line, row, "act_dtype", number_format),
        cell(line, row, "time_ms", float) / 1e3,
        source=f"{_T4_SOURCE}, {row['model']} line {row['line']}",
    )  # fmt: skip


def _sizes(text: str, count: int) -> list[int]:
    sizes = parsed_json(text)
    # JSON reads any value: a number in this place is no shape either.
    if not isinstance(sizes, list) or len(sizes) != count:
        raise FileFormatError(f"expected {count} sizes in brackets")
    # By type, as bool is an int: neither null nor true nor 2.5 counts anything.
    if any(type(size) is not int or size < 1 for size in sizes):
        raise FileFormatError(f"expected {count} whole numbers above 0 in brackets")
    return sizes


def _count(text: str) -> int:
    count = int(text)
    if count < 1:  # it is divided by
        raise FileFormatError("expected a whole number above 0")
    return count


def _hawqv3_t4(file: Published) -> MeasuredTable:
    kernels, num_failed = hawqv3_kernels(file.text)
    entries = merged(kernels)
    return MeasuredTable(
        name=file.name,
        title="NVIDIA T4, kernels of ResNet-18 and ResNet-50 as measured for HAWQ-V3",
        notes=(
            f"{len(kernels)} kernels of {len(entries)} kinds, {num_failed} more failed; equal ones "
            "are averaged. Each is the fastest that TVM's tuner found, run by itself: the launch "
            "from a network, quantization between layers, additions and pooling are left out."
        ),
        source=_T4_SOURCE,
        machine={"accelerator": "NVIDIA T4", "compiler": "TVM, tuned kernels"},
        entries=entries,
    )


def merged(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """One entry per shape, batch size and precision: the mean latency of equal ones."""
    groups: dict[Key, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.key, []).append(entry)
    return tuple(map(_mean, groups.values()))


def _mean(equal: Sequence[Entry]) -> Entry:
    latencies = [entry.latency_seconds for entry in equal]
    if len(set(latencies)) == 1:  # a simulator says the same every time
        return equal[0]
    sources = "; ".join(dict.fromkeys(entry.source for entry in equal if entry.source))
    spread = max(latencies) / min(latencies) - 1
    return replace(
        equal[0],
        # Rounded once, whatever the order of the file's lines.
        latency_seconds=fsum(latencies) / len(latencies),
        runs=len(equal),
        source=f"mean of {len(equal)} that differ by {spread:.1%}: {sources}",
    )


def _apq_bitfusion(file: Published) -> MeasuredTable:
    rows = read_rows(file.text, APQ_COLUMNS)
    return MeasuredTable(
        name=file.name,
        title="BitFusion accelerator, layers of APQ's search space",
        notes=(
            "Simulated, not measured. APQ states no units: milliseconds and millijoules are "
            "assumptions. Batch size 1. The head and the tail of APQ's networks are "
            + ("counted in every network." if file.head_tail else "left out.")
        ),
        source=f"{_APQ_SOURCE}; assumption: milliseconds and millijoules",
        machine={"accelerator": "BitFusion, simulated (Sharma et al., 2018, arXiv:1712.01507)"},
        entries=tuple(_apq_entry(line, row) for line, row in rows),
        fixed_parts=() if file.head_tail is None else _head_and_tail(file.head_tail),
        basis="estimated",
    )


def _apq_entry(line: int, row: Row) -> Entry:
    # The first nine columns are sizes and bits, the last two amounts.
    whole = {name: cell(line, row, name, int) for name in APQ_COLUMNS[:9]}
    size, kernel, groups = whole["in_hw"], whole["k"], cell(line, row, "groups", _count)
    written = (size + 2 * whole["padding"] - kernel) // cell(line, row, "stride", _count) + 1
    return Entry(
        "conv2d",
        (whole["cout"], whole["cin"] // groups, kernel, kernel),
        (whole["cin"], size, size),
        (whole["cout"], written, written),
        groups,
        1,
        Precision.parse(f"w{whole['w_bits']}a{whole['a_bits']}"),
        cell(line, row, "latency_ms", float) / 1e3,
        energy_joules=cell(line, row, "energy_mJ", float) / 1e3,
    )


_HEAD_TAIL: Final = (
    'expected {"head": {"energy": ..., "latency": ...}, "tail": {...}}; got another file'
)


def _head_and_tail(text: str) -> tuple[FixedPart, ...]:
    try:
        parts: Mapping[str, Any] = parsed_json(text, f"{_HEAD_TAIL}: ")
        return tuple(
            FixedPart(
                name,
                float(parts[name]["latency"]) / 1e3,
                float(parts[name]["energy"]) / 1e3,
                f"{_APQ_SOURCE}, {name} of its networks; assumption: milliseconds and millijoules",
            )
            for name in ("head", "tail")
        )
    # A ValueError by class, but its text is meant for the user already.
    except InputError as error:
        raise FileFormatError(f"head and tail: {error}") from error
    # A list or a string instead of an object is a TypeError, met by its index; a ValueError is text
    # that is no JSON or no number.
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FileFormatError(_HEAD_TAIL) from error


def _haq_cycles(file: Published) -> MeasuredTable:
    if file.clock_hz is None:
        raise InputError(
            "haq-cycles has no unit of time: give the clock that its cycles are to run at, such as "
            "--clock-hz 2e8"
        )
    clock_hz, rows = file.clock_hz, read_rows(file.text, HAQ_COLUMNS)
    found = chain.from_iterable(_haq_entries(line, row, clock_hz) for line, row in rows)
    return MeasuredTable(
        name=file.name,
        title=f"HAQ's accelerator at {clock_hz / 1e6:g} MHz, layers of MobileNetV2",
        notes=(
            "Simulated, not measured. The published numbers have no unit: cycles per batch of "
            f"{HAQ_BATCH_SIZE} are an assumption, and the clock is the user's. Formats of 1 bit "
            "are left out."
        ),
        source=f"{_HAQ_SOURCE}; assumption: cycles, at {clock_hz:g} Hz as given by the user",
        machine={"accelerator": "HAQ's, simulated", "clock_hz": f"{clock_hz:g}"},
        entries=merged(tuple(found)),
        basis="estimated",
    )


def _haq_entries(line: int, row: Row, clock_hz: float) -> tuple[Entry, ...]:
    """One entry, or none at a format of 1 bit."""
    whole = {name: cell(line, row, name, int) for name in HAQ_COLUMNS if name != "inferred_name"}
    # mpq's integers begin at 2 bits.
    if 1 in (whole["w_bits"], whole["a_bits"]):
        return ()
    inputs, outputs, size = whole["cin"], whole["cout"], whole["out_hw"]
    kernel, groups = whole["k"], cell(line, row, "groups", _count)
    is_linear = row["inferred_name"] == "fc"
    # The file has output sizes only. Where MobileNetV2 has a stride of 2 its sizes are even, so
    # that the input is exactly twice the output.
    read, written = size * whole["stride"], size
    return (
        Entry(
            "linear" if is_linear else "conv2d",
            (outputs, inputs // groups, *(() if is_linear else (kernel, kernel))),
            (inputs, *(() if is_linear else (read, read))),
            (outputs, *(() if is_linear else (written, written))),
            groups,
            HAQ_BATCH_SIZE,
            Precision.parse(f"w{whole['w_bits']}a{whole['a_bits']}"),
            whole["latency"] / clock_hz,
        ),
    )


CONVERTERS: Final[Mapping[str, Callable[[Published], MeasuredTable]]] = {
    "hawqv3-t4": _hawqv3_t4,
    "apq-bitfusion": _apq_bitfusion,
    "haq-cycles": _haq_cycles,
    "csv": lambda file: MeasuredTable.from_csv(file.text, file.name),
}
"""What reads which published layout."""
