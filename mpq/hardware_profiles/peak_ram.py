r"""Memory of a device without a heap to spare: the peak of activations, and what flash holds.

.. math:: \mathrm{RAM}(z) = \max_t \sum_{u \text{ alive in step } t}
    \Big\lceil \tfrac{n_u N}{8} \max_{\ell \in H_u} a_\ell(z_\ell) \Big\rceil \text{ bytes}

with ``n_u`` elements of buffer ``u`` for one example, ``N`` examples at once, ``H_u`` the layers in
whose input formats it is held (see ``Lifetimes``), and ``a`` bits of a format. A limit on the
maximum is a limit on every step, and a step is a sum over layers: a table of its own, named like
the step, in one ``Budget``. Where a buffer is read by layers that need not share a precision, the
step is one table for each of them that may be the widest. Tables that never exceed another one are
left out. No allocator is modelled: fragmentation and alignment are not counted, as TinyEngine's
in-place depthwise convolution is not (Lin et al. 2020, MCUNet, arXiv:2007.10319).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import ceil, prod
from typing import Final

import numpy as np
import numpy.typing as npt

from mpq.errors import InputError
from mpq.hardware_profiles.linear import (
    WEIGHT_BYTES,
    StoredBits,
    linear_amounts,
    packed_bits,
    weight_bytes,
)
from mpq.network.layer import Layer
from mpq.network.liveness import Buffer, Lifetimes
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import ORIGINAL, Precision

PEAK_RAM: Final = "peak_ram"
"""The resource: a maximum over steps, each with a table that has the step's name."""
FLASH: Final = "flash"
"""The resource: bytes of everything that a device stores."""
_MAX_TABLES = 64
"""Linear rows that one step may become: each is a row of the program that solvers work on."""
_ORIGINAL_BYTES = 4
"""Of a number that no layer quantizes: it is stored as float32."""


def flash_amounts(
    layers: Sequence[Layer], chosen: Sequence[Precision], stored_bits: StoredBits = packed_bits
) -> list[float]:
    """``[L]`` bytes of the layers' weights in the precisions chosen for them."""
    return linear_amounts(WEIGHT_BYTES, _in_flash(layers), chosen, stored_bits)


def _in_flash(layers: Sequence[Layer]) -> list[Layer]:
    return [replace(layer, original_bits=8 * _ORIGINAL_BYTES) for layer in layers]


def flash_table(
    layers: Sequence[Layer],
    candidates: Sequence[Precision],
    num_unquantized: int,
    code_bytes: float = 0.0,
    stored_bits: StoredBits = packed_bits,
) -> CostTable:
    """``[L, B]`` bytes of packed weights with scales; the constant is everything else.

    Nothing of ``weight_bytes`` is in here: what is not quantized is float32 on a device, whatever
    the checkpoint has.

    Args:
        layers: ``L`` layers.
        candidates: ``B`` precisions.
        num_unquantized: Parameters and statistics that stay as they are (biases, norms, layers left
            out), at 4 bytes each.
        code_bytes: What the runtime's code takes of the flash.
        stored_bits: How large a weight is at a precision, as a deployment target stores it.
    """
    stored = _in_flash(layers)
    rows = [
        [weight_bytes(layer, candidate, stored, stored_bits) for candidate in candidates]
        for layer in stored
    ]
    # An empty list has one axis: `reshape` keeps two of a network without layers.
    values = np.array(rows, dtype=np.float64).reshape(len(layers), len(candidates))
    names = tuple(layer.name for layer in layers)
    constant = _ORIGINAL_BYTES * num_unquantized + code_bytes
    return CostTable(FLASH, "bytes", names, tuple(candidates), values, constant)


def peak_ram_bytes(
    lifetimes: Lifetimes, precisions: Mapping[str, Precision], batch_size: int = 1
) -> tuple[float, str]:
    """The most that is held at once, and the first step in which it is.

    Args:
        lifetimes: Which of the network's tensors are held in which step.
        precisions: Layer to precision; a layer that is missing keeps its 32 bits.
        batch_size: Examples at once.
    """
    held = [0] * len(lifetimes.steps)
    for buffer in lifetimes.buffers:
        # As wide as the widest reader needs, since there is one copy of the buffer.
        bits = [_bits(precisions.get(name, ORIGINAL)) for name in buffer.held_for]
        size = _bytes(buffer, max(bits, default=buffer.bits), batch_size)
        # Both ends included: in the step that reads it last, a buffer is still held.
        for step in range(buffer.born, buffer.dies + 1):
            held[step] += size
    peak = max(held)
    return float(peak), lifetimes.steps[held.index(peak)]


def peak_ram_tables(
    lifetimes: Lifetimes,
    layers: Sequence[Layer],
    candidates: Sequence[Precision],
    batch_size: int = 1,
    ties: Sequence[Sequence[str]] = (),
) -> tuple[CostTable, ...]:
    """``[L, B]`` bytes held in every step; the largest total is the peak, at any assignment.

    Args:
        lifetimes: Which of the network's tensors are held in which step.
        layers: ``L`` layers.
        candidates: ``B`` precisions.
        batch_size: Examples at once.
        ties: Layers that share a precision: the first one stands for all.

    Raises:
        InputError: If in one step layers of too many buffers may differ in precision.
    """
    # Tied layers agree in bits, so that one of them stands for all and no combinations arise.
    first = {name: tie[0] for tie in ties for name in tie}
    tables = []
    for position, step in enumerate(lifetimes.steps):
        widest = _widest(step, lifetimes.alive(position), layers, first)
        # Rows with a `max` in them become several linear ones: the largest is the true step.
        for number, chosen in enumerate(widest, start=1):
            name = f"{step} (reader {number})" if len(widest) > 1 else step
            tables.append(_table(name, chosen, layers, candidates, batch_size))
    return tuple(tables)


def undominated(
    tables: Sequence[CostTable], ties: Sequence[Sequence[str]] = ()
) -> tuple[CostTable, ...]:
    """The tables without those that another one is never below, whatever is chosen.

    Exact: the largest difference of two totals is a sum of one maximum per group of tied layers.

    Args:
        tables: ``[L, B]`` each, of the same layers and precisions, without pairs, ``nan`` in the
            same cells: precisions that cannot be chosen.
        ties: Layers that share a precision.

    Returns:
        At least one, in the order given; of equal tables the first.
    """
    names = tables[0].layers
    first = {name: tie[0] for tie in ties for name in tie}
    groups = np.array([names.index(first.get(name, name)) for name in names])
    # The other members of a tie keep rows of zeros, which add nothing to a maximum.
    sums = np.zeros((len(tables), *tables[0].values.shape))  # [T, L, B], a tie in its first layer
    for row, group in enumerate(groups.tolist()):
        sums[:, group] += [table.values[row] for table in tables]
    constants = np.array([table.constant for table in tables])
    largest = _largest(sums) + constants
    average = _average(sums) + constants
    kept: list[int] = []
    # The largest first: a table can only be dominated by one with no smaller maximum, and of equal
    # maxima by one with no smaller average over all choices. What is dominated by a table that was
    # left out is dominated by a kept one as well.
    for index in sorted(range(len(tables)), key=lambda i: (-largest[i], -average[i], i)):
        # Exact for all assignments at once: groups choose independently, so the maximum of a sum is
        # the sum of their maxima.
        excess = _largest(sums[index] - sums[kept]) + constants[index] - constants[kept]
        if not (excess <= 0).any():
            kept.append(index)
    return tuple(tables[index] for index in sorted(kept))


def _largest(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[T]`` most that any choice adds up to; ``sums [T, L, B]``."""
    # What cannot be chosen must not win; infinities are fine in a maximum of which another cell is
    # finite.
    chosen = np.where(np.isnan(sums), -np.inf, sums)
    return np.asarray(chosen.max(axis=2).sum(axis=1))


def _average(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``[T]`` mean total of all choices; ``sums [T, L, B]``."""
    # Not `nanmean`, which warns where a layer has no choice at all.
    num_choices = np.maximum((~np.isnan(sums)).sum(axis=2), 1)
    return np.asarray((np.nansum(sums, axis=2) / num_choices).sum(axis=1))


def _widest(
    step: str, buffers: Sequence[Buffer], layers: Sequence[Layer], first: Mapping[str, str]
) -> list[list[tuple[Buffer, str | None]]]:
    """Every way of naming one layer as the widest for each buffer; ``None``: its bits are fixed."""
    known = {layer.name for layer in layers}
    options: dict[tuple[str | None, ...], list[Buffer]] = {}
    for buffer in buffers:
        # A reader that is left out keeps its 32 bits, and no other one is wider than that.
        is_fixed = not buffer.held_for or not known.issuperset(buffer.held_for)
        names = {first.get(name, name): None for name in buffer.held_for}
        # Buffers with the same readers have the same widest one: they take one choice together.
        options.setdefault((None,) if is_fixed else tuple(sorted(names)), []).append(buffer)
    # Counted before they are made: seven buffers of two readers are 128 tables already.
    if prod(map(len, options)) > _MAX_TABLES:
        several = sorted({str(name) for names in options if len(names) > 1 for name in names})
        raise InputError(
            f"{PEAK_RAM}: in step {step!r} tensors are read by layers of different precision "
            f"({', '.join(several)}) in more than {_MAX_TABLES} combinations; tie those that read "
            "one tensor"
        )
    return [
        [(b, name) for name, held in zip(names, options.values(), strict=True) for b in held]
        for names in product(*options)
    ]


def _table(
    name: str,
    held: Sequence[tuple[Buffer, str | None]],
    layers: Sequence[Layer],
    candidates: Sequence[Precision],
    batch_size: int,
) -> CostTable:
    row_of = {layer.name: row for row, layer in enumerate(layers)}
    values, constant = np.zeros((len(layers), len(candidates))), 0
    for buffer, layer in held:
        if layer is None:
            # Ids and masks have bits of their own; what a layer left out reads is float32.
            bits = buffer.bits if not buffer.held_for else _bits(ORIGINAL)
            constant += _bytes(buffer, bits, batch_size)
        else:
            values[row_of[layer]] += [_bytes(buffer, _bits(p), batch_size) for p in candidates]
    names = tuple(layer.name for layer in layers)
    return CostTable(name, "bytes", names, tuple(candidates), values, constant)


def _bits(precision: Precision) -> float:
    return precision.activation.mean_bits


def _bytes(buffer: Buffer, bits: float, batch_size: int) -> int:
    # Each buffer by itself is rounded up to bytes, as it begins at an address.
    return ceil(buffer.elements * batch_size * bits / 8)
