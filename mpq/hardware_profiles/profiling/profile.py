"""The job of ``mpq profile``, told once: network + data + runtime -> a profile of this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np

from mpq._support.arrays import Array
from mpq._support.bounds import check_whole
from mpq._support.journal import Journal
from mpq._support.phases import phase
from mpq._support.rows import Memory, Rows
from mpq.backends.onnx import Subgraph, check_batch_size, require_onnx
from mpq.callbacks.plans import tell_plan
from mpq.errors import InputError, ModelError
from mpq.hardware_profiles import NetworkProfile
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.correction import Correction, TimeErrors, predicted
from mpq.hardware_profiles.profiling.layer_sums import LayerSums
from mpq.hardware_profiles.profiling.layer_times import LayerTimes, time_layers
from mpq.hardware_profiles.profiling.machine import describe_machine
from mpq.hardware_profiles.profiling.network_times import (
    NetworkTimes,
    random_assignments,
    time_networks,
    uniform_assignments,
)
from mpq.hardware_profiles.profiling.timer import WARM_UP, Timer, pinned
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.fingerprint import measurement_key
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import Ranges

_NOTES: Final = (
    "Medians of processor or wall time on one machine, for the batch and shapes of the example "
    "inputs. Layers run alone, one after the other as in the network;"
)
_IN_PAIRS: Final = "what two that follow each other take together was measured, too, and the rest"
LAYERS: Final = "layers"
NETWORKS: Final = "networks"
VALIDATION_SHARE = 1 / 3
"""Share of the mixed networks that the correction is tried on before it is fitted to all networks;
the uniform ones are never held out, as they alone show each kernel by itself."""


@final
@dataclass(frozen=True)
class Profiling:
    """How a network is measured on this machine.

    Args:
        runtime: Runs the layers and whole networks.
        timer: How often everything is run, and which interval is accepted.
        num_networks: Networks at random mixed precisions, beside the uniform ones, that the sum of
            the layers is corrected with; 0: sums are left as they are.
        batch_size: How many examples one run has.
        ranges: How ranges of weights and activations are chosen: as in the search to come, so that
            what is checked here against the simulation is what a search assigns.
        journal: A file that finished rounds are kept in: an interrupted run resumes from it.
        seed: Seed of the drawn mixed precisions.

    Raises:
        InputError: If a number is too small, or the runtime's options do not fit.
        MissingDependencyError: If the runtime is not installed.
    """

    runtime: Runtime
    timer: Timer
    num_networks: int
    batch_size: int
    ranges: Ranges
    journal: Path | None
    seed: int

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        check_whole("num_networks", self.num_networks)
        if self.num_networks < 0:
            raise InputError(f"the number of whole networks is at least 0; got {self.num_networks}")
        # Also for torchao: layers and their inputs are found in the exported graph.
        require_onnx()
        self.runtime.idle()  # a runtime that is not installed says so at once

    def run(
        self, name: str, network: Network, data: Calibration, candidates: Sequence[Precision]
    ) -> NetworkProfile:
        """Measures every layer at every precision, then whole networks.

        Args:
            name: What the profile is called, as its file is.
            network: The network to measure, on the processor.
            data: Calibration examples: ranges, and the example inputs.
            candidates: ``[B]``; those that the runtime runs in no layer are left out.

        Raises:
            InputError: If the runtime runs none of the candidates.
            ModelError: If torch cannot export the network, or a layer runs at no precision.
            MeasurementError: If the machine is too noisy, or a clock runs backwards.
        """
        if network.device.type != "cpu":
            raise ModelError(
                f"profiles are measured on the processor; the model is on {network.device}"
            )
        # Around the compiling too: threads inherit the processors of the thread that starts them.
        with pinned(self.runtime.num_threads):
            runnable = self._runnable(network, candidates)
            compiled = CompiledNetwork.of(network, data, runnable, self.batch_size, self.ranges)
            rows = self._rows(compiled, data, runnable)
            between = Subgraph.between(compiled.template) if self.runtime.runs_pairs else ()
            with phase(LAYERS):
                times = time_layers(
                    compiled, self.runtime, runnable, between, self.timer, rows,
                    lambda *seconds: self._tell_plan(rows, len(runnable), *seconds),
                )  # fmt: skip
            sums = LayerSums.of(compiled, self.runtime, runnable, times)
            with phase(NETWORKS):
                measured = self._networks(compiled, sums, rows)
        return _profile(name, compiled, self.runtime, self.timer, sums, times, measured)

    def _tell_plan(self, rows: Rows, num_precisions: int, round_s: float, network_s: float) -> None:
        """From the first round of layers: as many rounds as are no rows, and networks."""
        left = sum(f"layers, round {number}" not in rows for number in range(self.timer.rounds))
        phases = {LAYERS: left * round_s}
        if self.num_networks:
            num_runs = (self.num_networks + num_precisions) * (self.timer.rounds + WARM_UP)
            phases[NETWORKS] = num_runs * network_s
        tell_plan(phases, besides=("compiling networks",) if self.num_networks else ())

    def _runnable(self, network: Network, candidates: Sequence[Precision]) -> list[Precision]:
        kinds = [layer.kind for layer in network.layers]
        runnable = [p for p in candidates if any(self.runtime.can_run(kind, p) for kind in kinds)]
        if not runnable:
            names = ", ".join(map(str, candidates))
            raise InputError(f"{self.runtime.name} runs no layer at {names}")
        return runnable

    def _rows(
        self, compiled: CompiledNetwork, data: Calibration, candidates: Sequence[Precision]
    ) -> Rows:
        if self.journal is None:
            return Memory()
        # Without rounds and accepted interval: a measurement that was too noisy goes on with more
        # rounds instead of beginning again.
        key = measurement_key(compiled.network, data, compiled.quantizer, candidates) | {
            "runtime": repr(self.runtime),
            "batch_size": str(compiled.batch_size),
            "clock": self.timer.clock,
            "seed": str(self.seed),
            "machine": repr(describe_machine((self.runtime.package,))),
        }
        return Journal(self.journal, key)

    def _networks(
        self, compiled: CompiledNetwork, sums: LayerSums, rows: Rows
    ) -> NetworkTimes | None:
        """Mixed networks first, then the uniform ones."""
        if not self.num_networks:
            return None
        table = sums.table()
        mixed = random_assignments(table, compiled.network.ties, self.num_networks, self.seed)
        # In this order, as `_unseen` takes the first ones to try the correction on.
        assignments = np.vstack([mixed, uniform_assignments(table)])
        return time_networks(
            compiled, self.runtime, sums.precisions, assignments, self.timer, rows,
            # In the label, hence in the rows' names: another number is other networks.
            f"{self.num_networks} networks",
        )  # fmt: skip


def _profile(
    name: str,
    compiled: CompiledNetwork,
    runtime: Runtime,
    timer: Timer,
    sums: LayerSums,
    times: LayerTimes,
    measured: NetworkTimes | None,
) -> NetworkProfile:
    correction = Correction.none(sums) if measured is None else Correction.fit(sums, measured)
    table = correction.apply(sums)
    scale = correction.factors[sums.kernel] + correction.deviations
    # Intervals scale as their times do, and a width has no sign.
    widths = replace(table, values=np.abs(scale) * sums.half_width, constant=0.0, pairs=())
    machine = describe_machine((runtime.package,))
    machine |= {"runtime": repr(runtime), "clock": timer.clock}
    return NetworkProfile(
        name=name,
        title=f"{runtime.name} on {machine['processor']}, {runtime.num_threads} thread(s)",
        notes=_notes(bool(table.pairs), machine),
        signatures=tuple(layer.signature for layer in compiled.layers),
        batch_size=compiled.batch_size,
        latency=table,
        half_width=widths,
        machine=machine,
        record=_record(compiled, sums, times, measured, correction),
    )


def _notes(has_pairs: bool, machine: Mapping[str, str]) -> str:
    between = _IN_PAIRS if has_pairs else "what is between them"
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    return (
        f"{_NOTES} {between} is in the constant, as far as whole networks were measured. "
        f"Machine: {described}."
    )


def _record(
    compiled: CompiledNetwork,
    sums: LayerSums,
    times: LayerTimes,
    measured: NetworkTimes | None,
    correction: Correction,
) -> Mapping[str, Any]:
    rows = [
        {"layer": name, "precision": str(precision), **asdict(interval)}
        for (name, precision), interval in times.alone.items()
    ]
    neighbours = [
        {
            "layers": [a, b],
            "precisions": [str(p), str(q)],
            # Of all times in one run that one follows the other.
            "excess_s": times.calls[a, b] * times.excess((a, p), (b, q)),
            **asdict(interval),
        }
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
        unseen = _unseen(sums, measured)
        found["networks"] = _networks(compiled, sums, measured, unseen)
        found["correction"] = correction.to_dict(sums)
        found["agreement"] = _agreement(sums, measured, unseen)
    return found


def _networks(
    compiled: CompiledNetwork, sums: LayerSums, measured: NetworkTimes, unseen: Array
) -> list[dict[str, Any]]:
    names = [layer.name for layer in compiled.layers]
    by_sum = predicted(sums.table(), measured.candidates).tolist()
    # The first ones alone are held out.
    held = [*unseen.tolist(), *[None] * (len(by_sum) - len(unseen))]
    rows = zip(measured.candidates.tolist(), measured.intervals, by_sum, held, strict=True)
    return [
        {
            "precisions": {
                name: str(sums.precisions[column]) for name, column in zip(names, row, strict=True)
            },
            **asdict(interval),
            "sum_of_layers_s": seconds,
            "unseen_s": other,
        }
        for row, interval, seconds, other in rows
    ]


def _unseen(sums: LayerSums, measured: NetworkTimes) -> Array:
    """``[H]`` seconds of the first mixed networks, by a correction that has not seen them."""
    num_mixed = len(measured.candidates) - len(uniform_assignments(sums.table()))
    # At least one, or there would be nothing to take a median of.
    held = max(int(num_mixed * VALIDATION_SHARE), 1)
    seen = NetworkTimes(measured.candidates[held:], measured.intervals[held:])
    # Anew: the correction that is written into the profile has seen all networks.
    return predicted(Correction.fit(sums, seen).apply(sums), measured.candidates[:held])


def _agreement(sums: LayerSums, measured: NetworkTimes, unseen: Array) -> dict[str, Any]:
    """The plain sum and the correction, on networks that the correction has not seen."""
    held = len(unseen)
    truth, plain = measured.seconds[:held], predicted(sums.table(), measured.candidates[:held])
    models = {"sum_of_layers": plain, "corrected": unseen}
    return {label: asdict(TimeErrors.of(found, truth)) for label, found in models.items()}
