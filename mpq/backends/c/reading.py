"""What a network computes, as torch exports it: steps that the target has kernels for."""

import warnings
from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from mpq.backends.c.operators import ALIASES, READERS, Found, shape_of
from mpq.backends.c.steps import Step, Steps, Window
from mpq.backends.exported_names import why_unwritable
from mpq.errors import ModelError
from mpq.network.examples import Batch

TARGET: Final = "c"


def exported(module: nn.Module, example: Batch) -> ExportedProgram:
    """The graph of a network for one example.

    Args:
        module: In evaluation mode, BatchNorm folded.
        example: One, ``[1, ...]``.

    Raises:
        ModelError: If torch cannot export it.
    """
    try:
        with warnings.catch_warnings():
            # Of torch itself, about its own classes.
            warnings.simplefilter("ignore")
            program = torch.export.export(module, example.args, dict(example.kwargs), strict=False)
            # Without operations in place, and convolutions and pools as they are.
            whole: ExportedProgram = program.run_decompositions({})
    except Exception as error:  # torch raises whatever the network's own code does
        unwritable = why_unwritable([error], module)
        if unwritable:
            raise ModelError(f"{TARGET}: {unwritable}") from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"{TARGET}: torch cannot export the network: {reason}") from error
    return whole


def read_steps(program: ExportedProgram) -> Steps:
    """The steps of an exported network.

    Raises:
        ModelError: If it does what the target has no kernel for; names the operation and the layer
            before it.
    """
    inputs = program.graph_signature.user_inputs
    outputs = program.graph_signature.user_outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise ModelError(
            f"{TARGET}: it runs networks that read one tensor and return one, and this one reads "
            f"{len(inputs)} and returns {len(outputs)}"
        )
    found = Found(dict(program.graph_signature.inputs_to_parameters), program.state_dict)
    elements: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            found.names[node.name] = node.name
        elif node.op == "call_function":
            _read(node, found)
        if isinstance(node.meta.get("val"), Tensor):
            elements[node.name] = prod(node.meta["val"].shape)
    by_name = {node.name: node for node in program.graph.nodes}
    output = by_name[str(outputs[0])]
    steps = _fused(found.steps, found.names[output.name])
    _check(steps, str(inputs[0]), found.names[output.name])
    return Steps(
        tuple(steps), str(inputs[0]), elements, tuple(output.meta["val"].shape[1:])
    )  # fmt: skip


def _read(node: Node, found: Found) -> None:
    operation = getattr(node.target, "_schema", None)
    name = operation.name.partition("::")[2] if operation is not None else str(node.target)
    try:
        if name in ALIASES or _is_same(name, node):
            source = node.args[0]
            assert isinstance(source, Node)
            _check_batch(name, node)
            found.names[node.name] = found.names[source.name]
        elif name in READERS:
            found.steps.append(READERS[name](node, found))
            found.names[node.name] = node.name
        else:
            raise ModelError(f"it has no kernel for {name}")
    except ModelError as error:
        layers = [step.layer for step in found.steps if step.layer is not None]
        where = f"after layer {layers[-1]!r}" if layers else "at the start"
        raise ModelError(f"{TARGET}: {node.name} ({where}): {error}") from error


def _check_batch(name: str, node: Node) -> None:
    """Refuses views that take the batch axis away, or put another one before it."""
    sizes = node.meta["val"].shape
    first = node.args[1] if len(node.args) > 1 else None
    axes = first if isinstance(first, list | tuple) else [first]
    moves_batch = name in ("squeeze", "unsqueeze", "flatten") and 0 in axes
    if not sizes or sizes[0] != 1 or moves_batch:
        raise ModelError(f"{name} moves the axis of the examples")


def _is_same(name: str, node: Node) -> bool:
    """Whether a cut or padding takes nothing away and adds nothing."""
    source = node.args[0] if node.args else None
    is_cut = name in ("slice", "pad", "constant_pad_nd")
    return is_cut and isinstance(source, Node) and shape_of(source) == shape_of(node)


def _fused(steps: list[Step], output: str) -> list[Step]:
    """Steps with the ReLU that follows them, and layers with what is added to their sums."""
    readers = Counter(name for step in steps for name in step.reads) + Counter([output])
    done: list[Step] = []
    for step in steps:
        last = done[-1] if done else None
        if last is None or last.makes not in step.reads or readers[last.makes] > 1:
            done.append(step)
        elif step.kind == "move" and (step.is_in_place or _are_one(last, step)):
            done[-1] = _joined(last, step)
        elif step.kind == "add" and last.kind == "layer" and _is_bare(last):
            (other,) = (name for name in step.reads if name != last.makes)
            done[-1] = replace(last, makes=step.makes, reads=(*last.reads, other))
        else:
            done.append(step)
    return done


def _are_one(first: Step, second: Step) -> bool:
    """Whether two moves are one: what the second one reads, the first one has moved."""
    if (
        first.kind != "move"
        or first.window.channels_before
        or first.shapes[0][0] != first.shapes[1][0]
    ):
        return False
    window = second.window
    ends = (
        (size - 1) * stride - before
        for size, stride, before in zip(
            second.shapes[1][1:], window.stride, window.padding, strict=True
        )
    )
    is_inside = all(end < size for end, size in zip(ends, first.shapes[1][1:], strict=True))
    return is_inside and max(window.padding) <= 0


def _joined(first: Step, second: Step) -> Step:
    """A step, and a move behind it that is one with it."""
    low, high = max(first.low, second.low), min(first.high, second.high)
    window = first.window
    if not second.is_in_place:
        one, two = first.window, second.window
        window = Window(
            stride=(one.stride[0] * two.stride[0], one.stride[1] * two.stride[1]),
            padding=(
                one.padding[0] + one.stride[0] * two.padding[0],
                one.padding[1] + one.stride[1] * two.padding[1],
            ),
            channels_before=two.channels_before,
        )
    shapes = (first.shapes[0], second.shapes[1])
    return replace(first, makes=second.makes, shapes=shapes, window=window, low=low, high=high)


def _is_bare(step: Step) -> bool:
    """Whether what it makes is its sums as they are."""
    return len(step.reads) == 1 and (step.low, step.high) == (-torch.inf, torch.inf)


def _check(steps: list[Step], reads: str, output: str) -> None:
    layers = Counter(step.layer for step in steps if step.layer is not None)
    name, count = next(iter(layers.most_common(1)), ("", 0))
    if count > 1:
        raise ModelError(f"{TARGET}: layer {name!r} is called {count} times (or its weight shared)")
    if not steps or steps[-1].makes != output:
        raise ModelError(f"{TARGET}: the network's output is not what its last operation makes")
    if any(output in step.reads for step in steps):
        raise ModelError(f"{TARGET}: the network's output is read by the network again")
    made = {reads, *(step.makes for step in steps)}
    unknown = [name for step in steps for name in step.reads if name not in made]
    if unknown:
        raise ModelError(f"{TARGET}: a constant ({unknown[0]}) is added or read as an input")


def constants(program: ExportedProgram) -> dict[str, Any]:
    """Placeholder to the tensor that it stands for, of all that are no input."""
    signature = program.graph_signature
    found: dict[str, Any] = {}
    for placeholder, name in signature.inputs_to_parameters.items():
        found[placeholder] = program.state_dict[name]
    for placeholder, name in signature.inputs_to_buffers.items():
        stored = program.state_dict.get(name)
        found[placeholder] = program.constants[name] if stored is None else stored
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        found[placeholder] = program.constants[name]
    return found
