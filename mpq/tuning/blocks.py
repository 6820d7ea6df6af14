"""Which parts of a network are tuned together: all of it, or block after block."""

from collections.abc import Iterator
from typing import Final

from torch import nn

from mpq.network.metric import OutputMetric
from mpq.tuning.descent import Stage
from mpq.tuning.objectives import Answers, BlockOutput
from mpq.tuning.student import Part, Student

CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that hold others, and add nothing to what these compute."""


def stages(
    student: Student, teacher: nn.Module, metric: OutputMetric, by_blocks: bool
) -> list[Stage]:
    """What is tuned together, in order.

    Args:
        student: The quantized network.
        teacher: The original, with modules of the same names.
        metric: How far outputs are apart.
        by_blocks: Whether blocks are tuned one after another. What lies in none, such as a norm
            before the head, is then left as it is.
    """
    if not by_blocks:
        return [(student.parts, Answers(teacher, student.module, metric))] if student.parts else []
    names = [name for name in blocks(student) if name in dict(teacher.named_modules())]
    of_blocks = ((_parts(student, name), name) for name in names)
    return [
        (parts, BlockOutput(teacher, student.module, name)) for parts, name in of_blocks if parts
    ]


def blocks(student: Student) -> list[str]:
    """Names of the blocks, in the order in which their layers are called first.

    A block is a member of a list or of a sequence of modules that holds layers (a residual block, a
    transformer's), the outermost such; elsewhere a layer by itself.
    """
    layers = [layer.name for layer in student.assignment.layers]
    found = list(_blocks("", student.module, False, set(layers)))

    def first_call(block: str) -> int:
        return min(place for place, name in enumerate(layers) if _is_in(name, block))

    return sorted(found, key=first_call)


def _blocks(name: str, module: nn.Module, is_member: bool, layers: set[str]) -> Iterator[str]:
    if not any(_is_in(layer, name) for layer in layers):
        return
    is_container = isinstance(module, CONTAINERS)
    if name in layers or (is_member and not is_container):
        yield name
        return
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        yield from _blocks(path, child, is_container, layers)


def _is_in(name: str, block: str) -> bool:
    return not block or name == block or name.startswith(f"{block}.")


def _parts(student: Student, block: str) -> tuple[Part, ...]:
    """Of which all layers, or all parameters, lie in a block."""
    modules = student.module.get_submodule(block)
    own = {id(parameter) for parameter in modules.parameters()}
    return tuple(p for p in student.parts if all(id(leaf) in own for leaf in p.leaves))
