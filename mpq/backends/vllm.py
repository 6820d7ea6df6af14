"""What vLLM needs of a checkpoint of compressed-tensors, by its sources: nothing here runs it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from mpq.backends._base import Backend
from mpq.errors import InputError, UnknownNameError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity

FUSED: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
)
"""Last parts of the names of layers that it makes one matrix of (``packed_modules_mapping``)."""
BITS_EVERYWHERE: Final = (4, 8)
"""Weight-only integers that all releases have (``WNA16_SUPPORTED_TYPES_MAP``); 2 to 8 in recent."""
MARLIN_GROUPS: Final = (32, 64, 128)
"""Group sizes of its fast kernels for 4 and 8 bits, besides a scale per channel."""
_EXPERT: Final = re.compile(r"(.*\bexperts)\.[0-9]+\..+")


def fused(names: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Layers that it fuses into one matrix, or runs by one kernel: they must share a scheme.

    >>> fused(["a.q_proj", "a.k_proj", "b.q_proj", "b.o_proj"])
    (('a.q_proj', 'a.k_proj'),)
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        expert = _EXPERT.fullmatch(name)
        for parts in FUSED:
            if last in parts and not expert:
                groups.setdefault((parent, parts[0]), []).append(name)
        if expert:
            groups.setdefault((expert[1], "experts"), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def checklist(layers: Sequence[AssignedLayer]) -> list[str]:
    """Sentences on what to look at before an assignment is served with vLLM.

    Args:
        layers: Of an assignment that the target compressed-tensors holds.
    """
    precisions = {layer.name: layer.precision for layer in layers}
    found = ["vLLM, by its documentation and sources, not run here:"]
    groups = fused(precisions)
    schemes = Counter(precisions[group[0]] for group in groups)
    told = ", ".join(f"{count} at {precision}" for precision, count in schemes.items())
    found.append(
        f"[{_mark(all(len({precisions[n] for n in group}) == 1 for group in groups))}] fused "
        f"layers share a scheme (q/k/v, gate/up, experts): {told or 'none is fused'}"
    )
    for precision, count in Counter(precisions.values()).items():
        if not precision.weight.is_exact:
            mark, sentence = _kernel(precision)
            found.append(f"[{mark}] {precision}, {count} layers: {sentence}")
    found.append(
        "[ok] every group of layers names its own format, which vLLM takes before the global one"
    )
    found.append(
        "[look] it computes in bf16 or fp16, and its kernels add up in another order: compare "
        "tasks, not logits"
    )
    return found


def serving(server: str | None, backend: Backend, assignment: Assignment) -> list[str]:
    """What a server needs of an export; empty if none is asked for.

    Args:
        server: ``vllm``, or ``None``.
        backend: What the export is for.
        assignment: What is exported.

    Raises:
        UnknownNameError: If there is no list for the server.
        InputError: If it does not read what the backend writes.
    """
    if server is None:
        return []
    if server != "vllm":
        raise UnknownNameError("server", server, ["vllm"])
    if backend.name != "compressed-tensors":
        raise InputError(f"vllm is served by --to compressed-tensors, and this is {backend.name}")
    return checklist(assignment.layers)


def _mark(is_fine: bool) -> str:
    return "ok" if is_fine else "NO"


def _kernel(precision: Precision) -> tuple[str, str]:
    """Whether it has a kernel, and for what."""
    weight, read = precision.weight, precision.activation
    if weight.number.is_microscaling:
        return "look", f"{weight.number.name} weights alone: recent releases only"
    if weight.number.is_float:
        return "look", "fp8: compute capability 8.9; older GPUs run the weights alone as fp8"
    if not read.is_exact:
        return _integer_inputs(precision)
    bits = weight.number.bits
    if bits not in BITS_EVERYWHERE:
        return "look", f"{bits} bits: recent releases only; older ones have 4 and 8 (WNA16)"
    size = weight.group_size
    if size is not None and size not in MARLIN_GROUPS:
        return "look", f"groups of {size}: its Marlin kernels have 32, 64, 128 and channels"
    return "ok", f"WNA16, {bits} bits: Marlin kernels, compute capability 7.5 or 8.0 by release"


def _integer_inputs(precision: Precision) -> tuple[str, str]:
    weight, read = precision.weight, precision.activation
    if weight.number.bits != 8:
        return "look", "fewer than 8 bits with int8 inputs: some processors only (W4A8)"
    if weight.granularity is Granularity.GROUP:
        return "NO", "int8 inputs need weights per channel or per tensor (W8A8)"
    kind = "dynamic" if read.granularity is Granularity.TOKEN else "static"
    return "ok", f"W8A8, {kind} inputs: compute capability 7.5"
