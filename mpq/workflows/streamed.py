"""Whether a task's network fits into memory, and what can be asked of one that is streamed."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from torch import Tensor, nn

from mpq._support.bounds import machine_bytes
from mpq.errors import InputError
from mpq.network.mapped import can_stream, resident_bytes, unmapped_bytes
from mpq.network.modules import stored_tensors
from mpq.quantization.precision import Granularity, TensorFormat
from mpq.sensitivity import SensitivityEstimator
from mpq.sensitivity.auto import AutoEstimator
from mpq.sensitivity.output_sketch import OutputSketch

if TYPE_CHECKING:
    from mpq.workflows.method import Method
    from mpq.workflows.task import Task

ESTIMATORS: Final[tuple[type[SensitivityEstimator], ...]] = (AutoEstimator, OutputSketch)
"""Those that look at one layer after the other, and keep little of each."""
SCALE_BYTES: Final = 8
"""Of a group of weights in a format: a scale in float32, and a zero point."""
_AT_ONCE: Final = 3
"""How often the largest weight is there at once: as it is, rounded, and in tiles of both."""


def why_streamed(task: "Task") -> str:
    """See ``Task.streamed``."""
    if not isinstance(task.model, nn.Module) or not can_stream():
        return _not_here(task)
    allowed = task.memory_bytes
    memory = machine_bytes() if allowed is None else allowed
    own = list(_memories(task.model))
    model = sum(num_bytes for _, num_bytes in own)
    mapped = model - unmapped_bytes(tensor for tensor, _ in own)
    now = resident_bytes()
    # Whoever is measured has rounded weights beside its own.
    whole = now + mapped + model
    if whole <= memory or (allowed is None and not mapped):
        return ""
    told = (
        f"the network has {_gib(model)} of weights, and a search in memory would hold about "
        f"{_gib(whole)} of the {_gib(memory)} "
        + ("that memory (--memory) allows" if allowed is not None else "that this machine has")
    )
    if not mapped:
        raise InputError(
            f"{told}; to be streamed, weights have to lie in files and be mapped from there: give "
            "a Hugging Face folder (--model FOLDER, or transformers' from_pretrained(FOLDER, "
            'dtype="auto"))'
        )
    largest = max(num_bytes for _, num_bytes in own)
    least = now + _AT_ONCE * largest + _scales(own, {p.weight for p in task.precisions})
    if least > memory:
        raise InputError(
            f"{told}, and streamed it holds at least {_gib(least)}: its largest weight has "
            f"{_gib(largest)}, and scales of all candidates are kept; allow more, or give fewer "
            "or coarser candidates (groups)"
        )
    return f"{told}: it is streamed from its files, block by block"


def check_streamed(task: "Task", method: "Method") -> None:
    """Refuses what is not done block by block, before anything runs.

    Raises:
        InputError: Names the part, and what to do.
    """
    for what, instead in _refusals(task, method):
        raise InputError(f"{task.streamed}. {what} is not done so: {instead}")


def refuse_streamed(task: "Task", verb: str) -> None:
    """Refuses a verb that needs all of a network in memory.

    Raises:
        InputError: If the network would not fit.
    """
    if task.streamed:
        raise InputError(
            f"{task.streamed}. `{verb}` is not done so: only `search` and `frontier` are, and what "
            "they measure; allow more memory"
        )


def _refusals(task: "Task", method: "Method") -> Iterator[tuple[str, str]]:
    """What cannot be streamed of what is asked, and what to ask instead."""
    if not isinstance(method.estimator, ESTIMATORS):
        known = " and ".join(kind.name for kind in ESTIMATORS)
        yield f"sensitivity={method.estimator.name}", f"of the estimators {known} are"
    if method.solver.is_measuring:
        yield "is_measured=true", "leave it out, so that losses are predicted"
    if method.rounds:
        yield "refine", "leave it out (--refine 0)"
    if task.weight_rounding.reads_inputs:
        yield f"rounding={task.rounding}", "round to nearest (--rounding nearest)"
    asked = {
        "transforms (--transform)": bool(task.transforms),
        "tune (--tune)": task.tune is not None,
        "recalibrate (--recalibrate)": task.recalibrate,
        "bias_correction (--bias-correction)": task.bias_correction,
        "allow_randomness (--allow-randomness)": task.allow_randomness is not None,
        "a target (to, --to)": task.to is not None,
    }
    for what, is_asked in asked.items():
        if is_asked:
            yield what, "leave it out, or allow more memory"


def _not_here(task: "Task") -> str:
    if task.memory is not None and isinstance(task.model, nn.Module):
        raise InputError(
            "memory (--memory) is kept to by letting pages of files go, as Linux does it; this "
            "system does not: leave it out"
        )
    return ""


def _memories(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """What a checkpoint has, each memory once, with its bytes."""
    seen: set[int] = set()
    for tensor in stored_tensors(model):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            yield tensor, storage.nbytes()


def _scales(own: Iterable[tuple[Tensor, int]], formats: Iterable[TensorFormat]) -> int:
    """Bytes of the scales of all weights, in all formats that have one for every group."""
    elements = sum(tensor.numel() for tensor, _ in own)
    sizes = [f.group_size for f in formats if f.granularity is Granularity.GROUP]
    return sum(SCALE_BYTES * elements // size for size in sizes if size)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"
