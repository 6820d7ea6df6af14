"""Assignment -> something that runs in it: a network, or a file for another tool.

In: an ``Assignment``, the network, examples. Out: a network in the assigned formats, or a file.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import nn

from mpq._support.files import write_files
from mpq._support.names import shortened
from mpq._support.registry import Registry
from mpq.backends._base import HELD, REFUSED, Backend, Exported
from mpq.backends.auto_round import AutoRound
from mpq.backends.c.target import C
from mpq.backends.compressed_tensors import CompressedTensors
from mpq.backends.decoded import DecodesApart, check_can_stream
from mpq.backends.divided import of_whole_weights
from mpq.backends.gguf import Gguf
from mpq.backends.held_operands import with_operands_as
from mpq.backends.litert.target import LiteRt
from mpq.backends.mlx import Mlx
from mpq.backends.numbers_refusal import refusal_of_parts
from mpq.backends.onnx.export import Onnx
from mpq.backends.onnx.qdq import OnnxQdq
from mpq.backends.openvino import OpenVino
from mpq.backends.recipes._base import Recipe
from mpq.backends.recipes.aimet import Aimet
from mpq.backends.recipes.core_ml import CoreMl
from mpq.backends.recipes.executorch import ExecuTorch
from mpq.backends.recipes.llama_cpp_cache import LlamaCppCache
from mpq.backends.recipes.modelopt import ModelOpt
from mpq.backends.shipping import ship, ship_streamed
from mpq.backends.simulate import Simulate, transformed
from mpq.backends.streamed import why_run_streamed
from mpq.backends.target import Target
from mpq.backends.text import Text
from mpq.backends.torchao import TorchAo
from mpq.errors import InputError, PrecisionError
from mpq.network.examples import Calibration
from mpq.network.kept_tokens import KEPT_NONE
from mpq.network.layer import CACHES
from mpq.network.mapped import streaming
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import ORIGINAL

BACKENDS: Registry[Backend] = Registry(
    "backend",
    (
        Simulate,
        Onnx,
        OnnxQdq,
        OpenVino,
        CompressedTensors,
        Gguf,
        LiteRt,
        Mlx,
        TorchAo,
        AutoRound,
        C,
        Text,
        Aimet,
        ModelOpt,
        CoreMl,
        ExecuTorch,
        LlamaCppCache,
    ),
    group="mpq.backends",
)
"""Every backend, by the name that ``mpq export --to`` and ``mpq.quantize`` take."""

__all__ = [
    "BACKENDS",
    "Backend",
    "Exported",
    "ExportedFile",
    "Onnx",
    "Simulate",
    "Target",
    "Text",
    "TorchAo",
    "export",
    "file_backend",
    "quantize",
    "target_of",
]


@final
@dataclass(frozen=True)
class ExportedFile:
    """A file that was written.

    Args:
        path: Where the file is, as it was asked for.
        verdict: How it computes beside the simulation, for people; empty where nothing computes.
        deviation: Largest difference from the simulation over the first examples, in standard
            deviations of the outputs; ``None`` where it was not tried.
    """

    path: Path
    verdict: str
    deviation: float | None


def quantize(
    model: nn.Module, assignment: Assignment, backend: str | Backend = "simulate"
) -> nn.Module:
    """A new network that computes in the assigned formats; the given one stays as it is.

    Args:
        model: The network that the assignment was found for, in evaluation mode.
        assignment: With the calibrated ranges of static activation formats.
        backend: A name of ``mpq.BACKENDS`` with options, or a backend.

    Raises:
        InputError: If there is no such backend, or it makes no networks.
        MismatchError: If the assignment belongs to another network.
        ModelError: If the model is in training mode, or a range is missing.
        PrecisionError: If the backend has no kernel for a layer.
    """
    _check_assignment(assignment)
    built = _network_backend(backend)
    if not isinstance(built, Simulate):
        _check_steps(built, assignment)
        _check_numbers(built, assignment)
    assignment = with_operands_as(built, _with_caches_as(built, assignment))
    return built.quantize(*transformed(model, assignment))


def export(
    assignment: Assignment,
    path: Path | str,
    backend: str | Backend = "onnx",
    model: nn.Module | None = None,
    calibration: Any = None,
    metric: str | None = None,
    allow_randomness: int | None = None,
    held_out: Any = None,
    memory: int | str | None = None,
    channels: str | None = None,
) -> ExportedFile:
    """Writes a file for another tool.

    Args:
        assignment: The precision of every layer, with calibrated ranges.
        path: The file, or the folder of a target or a recipe; folders that are missing are made.
        backend: A name of ``mpq.BACKENDS`` with options, such as ``onnx:batch_size=8``.
        model: The network, for backends whose file holds weights.
        calibration: Example inputs, for backends that trace or run the network.
        metric: Which outputs count, as ``METRICS.build`` takes it; default: as in the search.
        allow_randomness: See ``Task``; default: as in the search.
        held_out: Examples that the file is run with, which the search did not see; default: those
            of ``calibration``, and a target's ``export.json`` says so.
        memory: What this process may hold, as in ``Task``: a network that would not fit is streamed
            from its files, where the target can be written so. Its weights are then decoded one by
            one, and nothing is run.
        channels: How weights whose channels have bits of their own are written for a tool that has
            one width for each: ``divide`` (a layer for each width, outputs side by side), or
            ``widen`` (all in the widest, with the same numbers). Default: they are refused.

    Raises:
        InputError: If there is no such backend, it writes no files, or lacks the network or data;
            if the network does not fit, and cannot be streamed for it.
        MismatchError: If the assignment belongs to another network.
        PrecisionError: If the backend has no kernel for a layer.
        MissingDependencyError: If the backend's packages are not installed.
        ModelError: If a target's runtime computes something else than the simulation.
        OutputError: If the file cannot be written, or a target's folder is there already.
    """
    _check_assignment(assignment)
    assignment = assignment.compared_by(metric, allow_randomness)
    built, path = file_backend(backend), Path(path)
    streamed = "" if model is None else why_run_streamed(model, memory, assignment)
    if streamed:
        able = ", ".join(part.name for part in BACKENDS if issubclass(part, DecodesApart))
        check_can_stream(built, built.name, streamed, able)
    if assignment.reparametrization is not None and isinstance(built, Recipe | Text):
        raise InputError(
            f"{built.name} writes precisions for the network as it came, and this one was "
            f"transformed ({', '.join(assignment.reparametrization.transforms)}): search without "
            "--transform"
        )
    if assignment.tuned is not None and isinstance(built, Recipe | Text):
        raise InputError(
            f"{built.name} writes precisions for the network as it came, and "
            f"{len(assignment.tuned.by_name)} of its biases and norms were tuned or corrected: "
            "search without --tune and --bias-correction, or export the network itself (`mpq "
            "targets`)"
        )
    if not isinstance(built, Text):
        _check_steps(built, assignment)
    if channels is not None:
        if model is None:
            raise InputError(f"{built.name} writes no weights: leave out channels (--channels)")
        calibration = None if calibration is None else Calibration.of(calibration)
        batch = None if calibration is None else calibration.first()
        model, assignment = of_whole_weights(model, assignment, channels, batch)
    if model is not None:
        model, assignment = transformed(model, assignment)
    assignment = with_operands_as(built, _with_caches_as(built, assignment))
    if not isinstance(built, Text):
        _check_numbers(built, assignment)
    if isinstance(built, Target):
        if model is None or calibration is None:
            raise InputError(f"the target {built.name} needs the network and examples")
        spelled = backend if isinstance(backend, str) else BACKENDS.spell(built)
        if streamed:
            with streaming():
                found = ship_streamed(built, spelled, assignment, path, model, streamed)
            return ExportedFile(path, found.verdict, None)
        check = ship(built, spelled, assignment, path, model, calibration, held_out)
        return ExportedFile(path, check.verdict, check.max_difference / check.spread)
    if held_out is not None and not built.needs_network:
        raise InputError(f"{built.name} runs nothing: leave out held_out (--eval-data)")
    if isinstance(built, Recipe):
        written = write_files(path, built.files(assignment, model, calibration))
        return ExportedFile(written[0], built.note, None)
    # All of it is made before the file is touched: a refusal leaves what was there.
    made = built.export(assignment, model, calibration if held_out is None else held_out)
    (file,) = write_files(path.parent, {path.name: made.content})
    return ExportedFile(file, made.verdict, made.deviation)


def _check_assignment(assignment: object) -> None:
    # The two functions have their arguments in another order, which is easily mixed up.
    if not isinstance(assignment, Assignment):
        raise InputError(
            f"expected an assignment, got a {type(assignment).__name__}: mpq.quantize(model, "
            "assignment), mpq.export(assignment, path, backend, model, calibration)"
        )


def _check_numbers(built: Backend, assignment: Assignment) -> None:
    """Refuses weights and inputs that nothing but the simulation computes with."""
    for layer in assignment.layers:
        weight, read = layer.precision.weight, layer.precision.activation
        # A target says by itself whether it holds several widths.
        parts = None if isinstance(built, Target) else weight.channels
        of_weight = "" if weight.channels else weight.why_simulated
        why = refusal_of_parts(parts) if parts else of_weight or read.why_simulated
        if why:
            raise PrecisionError(
                f"{built.name} cannot hold layer {layer.name!r} at "
                f"{shortened(str(layer.precision))}: {why}; it is simulated alone (mpq.quantize, "
                "mpq.evaluate)"
            )


def _check_steps(built: Backend, assignment: Assignment) -> None:
    """Refuses ranges by step where nothing but the simulation looks at the step."""
    clusters = assignment.steps
    stepped = [layer for layer in assignment.layers if layer.has_steps]
    if clusters is not None and stepped:
        raise PrecisionError(
            f"{built.name} holds one range of an input, and {stepped[0].name!r} has one for each "
            f"of {clusters.count} clusters of steps: write one network for each (--cluster 0 to "
            f"{clusters.count - 1}, assignment.of_cluster), or search with --step-clusters 1; all "
            "in one are simulated (mpq.quantize, mpq.evaluate)"
        )


def _with_caches_as(backend: Backend, assignment: Assignment) -> Assignment:
    """What a backend is given: key-value caches only where it holds them."""
    if backend.caches == HELD:
        return assignment
    rounded = [x for x in assignment.layers if x.kind in CACHES and x.precision != ORIGINAL]
    if rounded and backend.caches == REFUSED:
        raise PrecisionError(
            f"{backend.name} holds no key-value cache, and {rounded[0].name!r} is at "
            f"{rounded[0].precision}: it is simulated (mpq.quantize, mpq.evaluate), "
            "compressed-tensors holds it as a whole at a8s or afp8, and llama.cpp is told by "
            "options (llama-cpp-cache); search without --kv-cache for other tools"
        )
    kept = (layer for layer in assignment.layers if layer.kind not in CACHES)
    return replace(assignment, layers=tuple(kept), tokens_kept=KEPT_NONE)


def target_of(spelled: str | Target) -> Target:
    """The deployment target: a backend whose file its own runtime loads and runs.

    Raises:
        InputError: If there is none of that name, or it is a backend without a runtime; names those
            that have one.
    """
    built = _built(spelled)
    if not isinstance(built, Target):
        able = ", ".join(part.name for part in BACKENDS if issubclass(part, Target))
        raise InputError(f"{built.name} is no deployment target; those are: {able}")
    return built


def file_backend(backend: str | Backend) -> Backend:
    """The backend, if it writes files.

    Raises:
        InputError: If there is none of that name, or it writes no files; names those that do.
    """
    built = _built(backend)
    if not built.writes_files:
        able = ", ".join(part.name for part in BACKENDS if part.writes_files)
        raise InputError(f"the backend {built.name} writes no file; those that do: {able}")
    return built


def _network_backend(backend: str | Backend) -> Backend:
    built = _built(backend)
    if not built.makes_networks:
        able = ", ".join(part.name for part in BACKENDS if part.makes_networks)
        raise InputError(f"the backend {built.name} makes no network; those that do: {able}")
    return built


def _built(backend: str | Backend) -> Backend:
    return BACKENDS.build(backend) if isinstance(backend, str) else backend
