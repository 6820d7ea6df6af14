"""Where a compiled network and its simulations part: what every step makes, one after the other."""

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from mpq.backends.c.fixed_point import Integers
from mpq.backends.c.integer import run_integers
from mpq.backends.c.program import Program
from mpq.backends.layerwise import OUTPUT


def told_steps(program: Program, codes: Integers) -> tuple[Integers, list[dict[str, Any]]]:
    """What the integer simulation makes of examples: its outputs, and an entry for every tensor.

    Args:
        program: The network.
        codes: ``[N, K]`` codes of the input.

    Returns:
        Outputs ``[N, P]``; in the order of execution, the input first, each tensor's name, what
        makes it, its numbers of one example, the scale of a code, and the CRC-32 of all examples'
        codes without their zero, as int32 of the smallest byte first.
    """
    sums: dict[str, int] = {}

    def made(name: str, numbers: Integers) -> None:
        sums[name] = crc32(numbers.astype("<i4").tobytes(), sums.get(name, 0))

    outputs = run_integers(program, codes, made)
    makers = program.steps.makers
    sizes, forms = program.steps.elements, program.forms
    return outputs, [
        {"tensor": x, "made_by": makers[x], "size": sizes[x], "scale": forms[x].scale, "crc32": n}
        for x, n in sums.items()
    ]


def read_trace(told: Sequence[Mapping[str, Any]], made: bytes) -> list[Integers]:
    """``[N, size]`` numbers of every tensor, as ``host trace`` writes them.

    Args:
        told: Entries as ``told_steps`` makes them.
        made: Standard output.
    """
    sizes = [int(entry["size"]) for entry in told]
    numbers = np.frombuffer(made, np.int32).reshape(-1, sum(sizes))
    return [x.astype(np.int64) for x in np.split(numbers, np.cumsum(sizes)[:-1], axis=1)]


def first_other(told: Sequence[Mapping[str, Any]], numbers: Sequence[Integers]) -> str:
    """The first step that makes other codes than the integer simulation, for people.

    Args:
        told: Entries as ``told_steps`` makes them.
        numbers: ``[N, size]`` of every tensor, of the same examples.
    """
    for entry, found in zip(told, numbers, strict=True):
        if crc32(found.astype("<i4").tobytes()) != entry["crc32"]:
            return f"the first one whose codes differ is {entry['made_by']}"
    return "all of its steps are, and only the outputs that are expected are others"


def decoded_trace(
    told: Sequence[Mapping[str, Any]], numbers: Sequence[Integers]
) -> dict[str, Tensor]:
    """``OUTPUT`` with a tensor's name to its numbers ``[N, size]``, float32."""
    return {
        OUTPUT + entry["tensor"]: torch.from_numpy(found * entry["scale"]).float()
        for entry, found in zip(told, numbers, strict=True)
    }
