"""The job of ``mpq profile``, told once: model + data + runtime -> a profile of this machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from mpq._support.journal import Journal
from mpq._support.progress import showing_progress
from mpq._support.rows import Memory, Rows
from mpq.backends.onnx import Stretch, check_batch_size, require_onnx
from mpq.errors import InputError, ModelError
from mpq.hardware_profiles import NetworkProfile
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.compiled_network import Subject
from mpq.hardware_profiles.profiling.correction import Correction, TimeErrors, predicted
from mpq.hardware_profiles.profiling.layer_sums import Parts
from mpq.hardware_profiles.profiling.layer_times import LayerTimes, time_layers
from mpq.hardware_profiles.profiling.machine import describe_machine
from mpq.hardware_profiles.profiling.network_times import (
    WholeTimes,
    random_assignments,
    time_whole,
    uniform_assignments,
)
from mpq.hardware_profiles.profiling.runtimes import RUNTIMES
from mpq.hardware_profiles.profiling.timer import Timer, pinned
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.fingerprint import measurement_key
from mpq.quantization.precision import Precision

NOTES = (
    "Medians of processor or wall time on one machine, for the batch and shapes of the example "
    "inputs. Layers run alone, one after the other as in the network; what is between them is in "
    "the constant, as far as whole networks were measured."
)
VALIDATION_SHARE = 1 / 3
"""Share of the mixed networks that the correction is tried on before it is fitted to all."""


def profile(
    model: nn.Module,
    calibration: Any,
    *,
    runtime: str | Runtime = "onnxruntime",
    precisions: Sequence[str | Precision] | None = None,
    batch_size: int = 1,
    whole: int = 24,
    rounds: int = 60,
    max_interval: float = 0.1,
    clock: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fold: bool = True,
    journal: Path | None = None,
    name: str = "this-machine",
    seed: int = 0,
    progress: bool = False,
) -> NetworkProfile:
    """Measures a network on this machine: every layer at every precision, then whole networks.

    The model is left as found.

    Args:
        model: In evaluation mode, float32, on the processor.
        calibration: As for ``search``: ranges, and the example inputs.
        runtime: A name of ``RUNTIMES`` with options, such as ``onnxruntime:num_threads=2``.
        precisions: Default: the runtime's.
        batch_size: Examples of one run.
        whole: Networks at random mixed precisions, beside the uniform ones, that the sum of the
            layers is corrected with; 0: no whole network is run, and sums are left as they are.
        rounds: How often everything is run.
        max_interval: Half width of a 95 % interval that is accepted, relative to the median.
        clock: ``cpu`` or ``wall``; default: ``cpu`` where the runtime has one thread.
        include: Globs; only matching layers.
        exclude: Globs of layers that stay as they are.
        fold: Whether BatchNorm is folded, as in ``search``.
        journal: A file that finished rounds are kept in: after a crash it is gone on with.
        name: Of the profile.
        seed: Of the mixed precisions.
        progress: Whether bars are shown on standard error.

    Raises:
        InputError: If something given cannot be used.
        ModelError: If torch cannot export the network, or a layer runs at no precision.
        MissingDependencyError: If the runtime is not installed.
        MeasurementError: If the machine is too noisy, or a clock runs backwards.
    """
    check_batch_size(batch_size)
    if whole < 0:
        raise InputError(f"the number of whole networks is at least 0; got {whole}")
    chosen = RUNTIMES.build(runtime) if isinstance(runtime, str) else runtime
    timer = Timer(rounds, max_interval, clock or ("cpu" if chosen.num_threads == 1 else "wall"))
    require_onnx()
    chosen.idle()  # a runtime that is not installed says so at once
    given = chosen.default_precisions if precisions is None else precisions
    candidates = tuple(dict.fromkeys(_precision(p) for p in given))
    data = Calibration.of(calibration)
    with showing_progress(progress), pinned(chosen.num_threads):
        network = Network.of(model, data, include, exclude, fold)
        if network.device.type != "cpu":
            raise ModelError(
                f"profiles are measured on the processor; the model is on {network.device}"
            )
        runnable = [p for p in candidates if any(chosen.can_run(x.kind, p) for x in network.layers)]
        if not runnable:
            raise InputError(f"{chosen.name} runs no layer at {', '.join(map(str, candidates))}")
        subject = Subject.of(network, data, runnable, batch_size)
        rows = _rows(journal, subject, data, chosen, timer, runnable, seed)
        between = Stretch.between(subject.skeleton) if chosen.runs_pairs else ()
        times = time_layers(subject, chosen, runnable, between, timer, rows)
        parts = Parts.of(subject, chosen, runnable, times)
        measured = _whole(subject, chosen, parts, timer, rows, whole, seed)
    return _profile(name, subject, chosen, timer, parts, times, measured)


def _precision(value: str | Precision) -> Precision:
    return value if isinstance(value, Precision) else Precision.parse(value)


def _rows(
    path: Path | None,
    subject: Subject,
    data: Calibration,
    runtime: Runtime,
    timer: Timer,
    candidates: Sequence[Precision],
    seed: int,
) -> Rows:
    if path is None:
        return Memory()
    key = measurement_key(subject.network, data, subject.quantizer, candidates) | {
        "runtime": repr(runtime),
        "batch_size": str(subject.batch_size),
        "clock": timer.clock,
        "seed": str(seed),
        "machine": repr(describe_machine((runtime.package,))),
    }
    return Journal(path, key)


def _whole(
    subject: Subject,
    runtime: Runtime,
    parts: Parts,
    timer: Timer,
    rows: Rows,
    count: int,
    seed: int,
) -> WholeTimes | None:
    """Mixed networks first, then the uniform ones."""
    if not count:
        return None
    table = parts.table()
    mixed = random_assignments(table, subject.network.ties, count, seed)
    candidates = np.vstack([mixed, uniform_assignments(table)])
    return time_whole(
        subject, runtime, parts.precisions, candidates, timer, rows, f"{count} networks"
    )


def _profile(
    name: str,
    subject: Subject,
    runtime: Runtime,
    timer: Timer,
    parts: Parts,
    times: LayerTimes,
    measured: WholeTimes | None,
) -> NetworkProfile:
    correction = Correction.none(parts) if measured is None else Correction.fit(parts, measured)
    table = correction.apply(parts)
    scale = correction.factors[parts.kernel] + correction.deviations
    widths = replace(table, values=np.abs(scale) * parts.half_width, constant=0.0, pairs=())
    machine = describe_machine((runtime.package,))
    machine |= {"runtime": repr(runtime), "clock": timer.clock}
    return NetworkProfile(
        name=name,
        title=f"{runtime.name} on {machine['processor']}, {runtime.num_threads} thread(s)",
        notes=f"{NOTES} Machine: {', '.join(f'{key} {value}' for key, value in machine.items())}.",
        signatures=tuple(layer.signature for layer in subject.layers),
        batch_size=subject.batch_size,
        latency=table,
        half_width=widths,
        machine=machine,
        record=_record(subject, parts, times, measured, correction),
    )


def _record(
    subject: Subject,
    parts: Parts,
    times: LayerTimes,
    measured: WholeTimes | None,
    correction: Correction,
) -> Mapping[str, Any]:
    rows = [
        {"layer": name, "precision": str(precision), **asdict(interval)}
        for (name, precision), interval in times.alone.items()
    ]
    neighbours = [
        {"layers": [a, b], "precisions": [str(p), str(q)], **asdict(interval)}
        for ((a, p), (b, q)), interval in times.together.items()
    ]
    wrong = [
        {"layer": name, "precision": str(precision), "error_in_standard_deviations": error}
        for (name, precision), error in times.wrong.items()
    ]
    found: dict[str, Any] = {
        "idle": asdict(times.idle), "layers": rows, "neighbours": neighbours,
        "computed_wrongly": wrong,
    }  # fmt: skip
    if measured is not None:
        found["networks"] = _networks(subject, parts, measured)
        found["correction"] = correction.to_dict(parts)
        found["agreement"] = _agreement(parts, measured)
    return found


def _networks(subject: Subject, parts: Parts, measured: WholeTimes) -> list[dict[str, Any]]:
    names = [layer.name for layer in subject.layers]
    return [
        {
            "precisions": {
                name: str(parts.precisions[column]) for name, column in zip(names, row, strict=True)
            },
            **asdict(interval),
        }
        for row, interval in zip(measured.candidates.tolist(), measured.intervals, strict=True)
    ]


def _agreement(parts: Parts, measured: WholeTimes) -> dict[str, Any]:
    """The plain sum and the correction, on networks that the correction has not seen."""
    held = max(int(len(measured.candidates) * VALIDATION_SHARE), 1)
    seen = WholeTimes(measured.candidates[held:], measured.intervals[held:])
    fitted = Correction.fit(parts, seen).apply(parts)
    models: Mapping[str, Callable[[], Any]] = {
        "sum_of_layers": parts.table, "corrected": lambda: fitted,
    }  # fmt: skip
    truth, candidates = measured.seconds[:held], measured.candidates[:held]
    return {
        label: asdict(TimeErrors.of(predicted(table(), candidates), truth))
        for label, table in models.items()
    }
