"""Every layer alone and with its neighbour, at every precision that is computed rightly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import nan
from typing import Final, final

import numpy as np
import torch

from mpq._support.progress import track
from mpq._support.rows import Rows
from mpq.backends.onnx import Subgraph, rounds_output
from mpq.errors import ModelError
from mpq.hardware_profiles.profiling._base import Runtime
from mpq.hardware_profiles.profiling.compiled_network import CompiledNetwork
from mpq.hardware_profiles.profiling.interval import Interval
from mpq.hardware_profiles.profiling.timer import Round, Timer
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import quantized

ALLOWED_ERROR: Final = 0.1
"""Largest difference from the simulation, in standard deviations of the layer's output, besides
one step where the output is rounded: kernels that saturate are far above, others far below."""
IDLE: Final = "idle"
Cell = tuple[str, Precision]


@final
@dataclass(frozen=True)
class LayerTimes:
    """What was timed.

    Args:
        alone: Layer and precision to its interval, from floats to floats.
        together: Two layers that follow each other, with what is between them, at two precisions,
            one for each kernel.
        calls: How often two layers follow each other in one run.
        layer_calls: How often a layer is called in one run; its calls are taken to be alike where
            it is timed with another.
        idle: A run that computes nothing; taken off all others when they are used.
        wrong: Layer and precision to how far off the runtime computes, in standard deviations.
    """

    alone: Mapping[Cell, Interval]
    together: Mapping[tuple[Cell, Cell], Interval]
    calls: Mapping[tuple[str, str], int]
    layer_calls: Mapping[str, int]
    idle: Interval
    wrong: Mapping[Cell, float]

    def seconds(self, name: str, precision: Precision) -> float:
        """Of all calls in one run; ``nan`` where it was not timed."""
        found = self.alone.get((name, precision))
        # Noise may put a tiny layer below the idle run, and no layer takes less than nothing.
        return nan if found is None else max(found.median_s - self.idle.median_s, 0.0)

    def half_width(self, name: str, precision: Precision) -> float:
        """Of all calls in one run; ``nan`` where it was not timed."""
        found = self.alone.get((name, precision))
        # Added up, and not as squares, which would need errors that are independent.
        return nan if found is None else found.half_width_s + self.idle.half_width_s

    def excess(self, first: Cell, second: Cell) -> float:
        """Seconds that two layers and what is between them take beyond what each takes alone."""
        # Without the idle run in any of the three, as it would be once in the first and be taken
        # off twice.
        both = self.together[first, second].median_s - self.idle.median_s
        return both - self._once(first) - self._once(second)

    def _once(self, cell: Cell) -> float:
        return self.seconds(*cell) / self.layer_calls[cell[0]]


def time_layers(
    compiled: CompiledNetwork,
    runtime: Runtime,
    candidates: Sequence[Precision],
    between: Sequence[Subgraph],
    timer: Timer,
    rows: Rows,
    told: Callable[[float, float], None] = lambda _round_s, _network_s: None,
) -> LayerTimes:
    """Times every layer at every precision, in rounds that run through the network in order.

    Args:
        compiled: The network, calibrated and exported.
        runtime: What compiles and runs its layers.
        candidates: Precisions; where the runtime has no kernel, or one that computes something
            else, the layer is left out.
        between: Two layers each that are timed together too, for all kernels that both have.
        timer: How long, and with which confidence, everything is timed.
        rows: Finished rounds, also those of an earlier run.
        told: Is given the seconds of a round, and of all layers at one precision.

    Raises:
        ModelError: If a layer runs at no precision.
        MeasurementError: If the machine is too noisy, or a clock runs backwards.
    """
    # In turns with all others: what a mere call of the runtime takes is taken off each of them.
    runs: dict[str, Callable[[], object]] = {IDLE: runtime.idle().run}
    wrong: dict[Cell, float] = {}
    cells: list[Cell] = []
    for precision in track(candidates, "compiling"):
        for layer in compiled.layers:
            if not runtime.can_run(layer.kind, precision):
                continue
            # Before it is timed: a kernel may be fast because it computes something else.
            error = error_of(compiled, runtime, layer.name, precision)
            if error > ALLOWED_ERROR:
                wrong[layer.name, precision] = error
                continue
            cells.append((layer.name, precision))
            alone = Subgraph.alone(compiled.template, layer.name)
            program = runtime.subgraph(compiled, alone, {layer.name: precision})
            runs[_named(cells[-1])] = program.run
    # Before the timing: its table would be of no use to a search.
    _require_some(compiled, cells, wrong)
    pairs: list[tuple[Cell, Cell]] = []
    for subgraph in track(between, "compiling pairs"):
        for both in _by_kernel(compiled, runtime, cells, subgraph.layers):
            pairs.append(both)
            runs[_named(*both)] = runtime.subgraph(compiled, subgraph, dict(both)).run
    # A group is a network at one precision: layers find caches as the one before left them.
    columns = [[_named(cell) for cell in cells if cell[1] == precision] for precision in candidates]
    columns += [[IDLE], [_named(*pair) for pair in pairs]]

    def first(row: Round) -> None:
        alone_s = sum(row[_named(cell)][1] for cell in cells)
        told(sum(wall_s for _, wall_s in row.values()), alone_s / len(candidates))

    found = timer.measure(runs, columns, rows, "layers", first)
    return LayerTimes(
        {cell: found[_named(cell)] for cell in cells},
        {pair: found[_named(*pair)] for pair in pairs},
        {(one, other): subgraph.calls for subgraph in between for one, other in [subgraph.layers]},
        {layer.name: layer.calls for layer in compiled.layers},
        found[IDLE],
        wrong,
    )


def error_of(compiled: CompiledNetwork, runtime: Runtime, name: str, precision: Precision) -> float:
    """Largest difference between runtime and simulation, in standard deviations of the output.

    On the inputs of the layer's first call in a few examples. What rounding an output to 8 bits may
    do is taken off.
    """
    template, network = compiled.template, compiled.network
    # Several examples, also where a run has one: few numbers may miss where a kernel saturates.
    alone = Subgraph.alone(template, name, has_samples=True)
    found = runtime.subgraph(compiled, alone, {name: precision}).outputs(*alone.examples)
    with quantized(network, {name: precision}, compiled.quantizer), torch.no_grad():
        # The first call only, as `outputs` gives the graph's first output.
        expected = network.layer_module(name)(template.samples[name][0]).cpu().numpy()
    kind = next(layer.kind for layer in compiled.layers if layer.name == name)
    # A constant output has no spread: its error then counts as it is.
    spread, step = float(expected.std()) or 1.0, 0.0
    if rounds_output(kind, precision):
        low, high = template.output_ranges[name]
        # Beyond the calibrated range integers end, which is no fault of the kernel; 8 bits have 255
        # steps.
        expected, step = np.clip(expected, low, high), (high - low) / 255
    # What is no finite number is as wrong as can be, yet finite after the division by a spread that
    # may be small: the record is JSON, which has no infinity.
    most = float(np.finfo(np.float32).max)
    found = np.nan_to_num(found.astype(np.float64), nan=most, posinf=most, neginf=-most)
    return max(float(np.abs(found - expected).max()) - step, 0.0) / spread


def _by_kernel(
    compiled: CompiledNetwork, runtime: Runtime, cells: Sequence[Cell], names: Sequence[str]
) -> list[tuple[Cell, Cell]]:
    """One pair of precisions for every pair of kernels."""
    kinds = {layer.name: layer.kind for layer in compiled.layers}
    representatives: list[dict[str, Cell]] = []
    for name in names:
        own = [cell for cell in cells if cell[0] == name]
        # The last precision of each kernel, as good as any: they take about as long.
        representatives.append(
            {runtime.kernel(kinds[name], precision): (name, precision) for _, precision in own}
        )
    first, second = representatives
    return list(product(first.values(), second.values()))


def _named(*cells: Cell) -> str:
    return ", ".join(f"{name} at {precision}" for name, precision in cells)


def _require_some(
    compiled: CompiledNetwork, cells: Sequence[Cell], wrong: Mapping[Cell, float]
) -> None:
    able = {name for name, _ in cells}
    for layer in compiled.layers:
        if layer.name not in able:
            off = [str(p) for name, p in wrong if name == layer.name]
            reason = f"; computed wrongly at {', '.join(off)}" if off else ""
            raise ModelError(
                f"layer {layer.signature!r} runs at none of the precisions{reason}; add fp32"
            )
