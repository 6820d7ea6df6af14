"""Measuring a task's network on this machine."""

from collections.abc import Sequence
from pathlib import Path

from mpq._support.events import Callback, listening
from mpq.errors import InputError
from mpq.hardware_profiles import NetworkProfile
from mpq.hardware_profiles.profiling import RUNTIMES, Profiling, Runtime, Timer
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.workflows.defaults import MAX_INTERVAL, NUM_NETWORKS, ROUNDS, RUNTIME
from mpq.workflows.outcome import announced
from mpq.workflows.streamable import refuse_streamed
from mpq.workflows.task import Task, check_task


def profile(
    task: Task,
    runtime: str | Runtime = RUNTIME,
    *,
    num_networks: int = NUM_NETWORKS,
    rounds: int = ROUNDS,
    max_interval: float = MAX_INTERVAL,
    clock: str | None = None,
    journal: Path | None = None,
    name: str = "this-machine",
    callbacks: Sequence[Callback] = (),
) -> NetworkProfile:
    """Measures a network on this machine: every layer at every precision, then whole networks.

    Args:
        task: Model (float32, on the processor), calibration examples, candidates (default: the
            runtime's), ranges, batch size and seed; of its rules, which layers are quantized. What
            concerns a search only is not asked: the device, fixed and allowed precisions, ties.
        runtime: A name of ``mpq.RUNTIMES`` with options, such as ``onnxruntime:num_threads=2``.
        num_networks: Networks at random mixed precisions, beside the uniform ones, that the sum of
            the layers is corrected with; 0: no whole network is run, sums are left as they are.
        rounds: How often everything is run.
        max_interval: Half width of a 95 % interval that is accepted, relative to the median.
        clock: ``cpu`` or ``wall``; default: ``cpu`` where the runtime has one thread.
        journal: A file that finished rounds are kept in: an interrupted run resumes from it.
        name: Name of the profile, which results call the device by.
        callbacks: Who is told what happens meanwhile (``mpq.callbacks``): none changes the answer.

    Raises:
        InputError: If something given cannot be used.
        ModelError: If torch cannot export the network, or a layer runs at no precision.
        MissingDependencyError: If the runtime is not installed.
        MeasurementError: If the machine is too noisy, or a clock runs backwards.
    """
    check_task(task, "profile")
    refuse_streamed(task, "profile")
    if task.workload.phase is not None:
        raise InputError(
            "a profile is measured at the examples as they are, not at phase "
            f"{task.workload.phase}: leave it out, and give examples of as many tokens"
        )
    chosen = RUNTIMES.build(runtime) if isinstance(runtime, str) else runtime
    # processor time leaves out other processes, but adds up the threads of one program
    timer = Timer(rounds, max_interval, clock or ("cpu" if chosen.num_threads == 1 else "wall"))
    batch_size = task.workload.batch_size
    run = Profiling(chosen, timer, num_networks, batch_size, task.ranges, journal, task.seed)
    given, rules, data = task.given_precisions, task.rules, Calibration.of(task.calibration)
    with listening(callbacks):
        # Prepared as in a search, so that a profile's layers are called as those that it is for.
        network = Network.of(
            task.model, data, rules.include, rules.exclude, rules.fold, task.output_metric,
            task.allow_randomness,
        )  # fmt: skip
        return announced(run.run(name, network, data, given or default_precisions(chosen)))


def default_precisions(runtime: Runtime) -> tuple[Precision, ...]:
    """What a runtime is measured at where no candidates are given."""
    return tuple(map(Precision.parse, runtime.default_precisions))
