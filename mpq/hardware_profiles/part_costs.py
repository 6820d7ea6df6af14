"""What parts of layers cost: their shares of what layers cost, and what names their bits."""

from collections.abc import Sequence
from typing import Final

from mpq.errors import InputError
from mpq.hardware_profiles.kv_cache_bytes import CACHE_RESOURCES, WEIGHT_AND_CACHE_BYTES
from mpq.hardware_profiles.linear import LINEAR_RESOURCES, WEIGHT_BYTES
from mpq.hardware_profiles.peak_ram import FLASH, PEAK_RAM
from mpq.network.layer import Layer
from mpq.problem.budget import FILE_BYTES
from mpq.problem.cost_table import CostTable
from mpq.problem.parts import Parts
from mpq.problem.split import OF_READS
from mpq.quantization.channel_bits import OUTPUTS

PART_RESOURCES: Final = (*LINEAR_RESOURCES, *CACHE_RESOURCES, FLASH, FILE_BYTES, PEAK_RAM)
"""Sums over channels, also those of a target's files if it holds parts. A device's seconds and
joules are of whole layers."""


READ_RESOURCES: Final = tuple(x for x in PART_RESOURCES if x != PEAK_RAM)
"""Sums over blocks of what layers read: buffers are rounded up to bytes each."""


def check_part_resource(resource: str, axis: str = OUTPUTS) -> None:
    """Refuses a resource of which a part of a layer has no share.

    Args:
        resource: That is limited.
        axis: What parts are of, as in ``Parts``.

    Raises:
        InputError: If it is none of ``PART_RESOURCES``, or ``READ_RESOURCES``.
    """
    known = READ_RESOURCES if axis in OF_READS else PART_RESOURCES
    if resource not in known:
        raise InputError(
            f"no device has a kernel for parts of different bits, so that their {resource} is "
            f"not known: with split (--split) give limits on {', '.join(known)}"
        )


def part_costs(parts: Parts, table: CostTable, layers: Sequence[Layer]) -> CostTable:
    """``[R, B]`` of a resource's ``[L, B]``.

    Every row has the share of its channels; the constant has what says which part has which bits,
    and the bytes that layers round up; where parts are of what layers read, which of them has which
    bits is not counted.

    Args:
        parts: The rows.
        table: Of a resource in ``PART_RESOURCES``, or of a step of ``peak_ram``.
        layers: ``L``.
    """
    constant = 0.0
    if parts.axis in OF_READS:
        return parts.table(table)
    if table.name in (WEIGHT_BYTES, WEIGHT_AND_CACHE_BYTES, FLASH, FILE_BYTES):
        constant = parts.code_bits / 8 + len(parts.divided)
    elif table.name == "effective_bits":
        constant = parts.code_bits / sum(x.num_weights for x in layers if x.weight_of is None)
    return parts.table(table, constant)
