"""Exports of networks that do not fit into memory: decoded weight by weight, and not run."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, final, runtime_checkable

from torch import Tensor

from mpq.backends.comparing import check_decoded, counted
from mpq.backends.export_check import StreamedCheck
from mpq.backends.half_precision import DTYPE_NAMES, parameter_dtype
from mpq.backends.stored import check_budget, check_kinds, check_size
from mpq.backends.target import Shipped, Target
from mpq.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class DecodedWeight:
    """One weight, as a tool's reader decodes it.

    Args:
        name: The layer's.
        weight: ``[O, K]``.
        kind: As ``Loaded.kinds`` has it.
    """

    name: str
    weight: Tensor
    kind: str


@runtime_checkable
class DecodesApart(Protocol):
    """A ``Target`` that writes a network which is not in memory, and reads single weights again."""

    def decoded(self, folder: Path) -> Iterator[DecodedWeight]:
        """Every quantized weight, one after the other.

        Args:
            folder: As the target wrote it.

        Raises:
            MissingDependencyError: If the reader is not installed.
        """


def check_can_stream(target: object, name: str, streamed: str, able: str) -> None:
    """Refuses a target that needs the network in memory, before anything runs.

    Args:
        target: What would write.
        name: How it is called.
        streamed: Why the network is streamed.
        able: Names of those that need not.

    Raises:
        InputError: If it needs it.
    """
    if not isinstance(target, DecodesApart):
        raise InputError(
            f"{streamed}. `mpq export --to {name}` is not done so: of the targets {able} is; take "
            "that one, or allow more memory"
        )


def decoded_check(
    target: Target, spelled: str, shipped: Shipped, made: Path, was_searched_for: bool, why: str
) -> StreamedCheck:
    """Refuses weights and sizes that are not those of the simulation; else what is written down.

    Args:
        target: What wrote the files; one that ``DecodesApart``.
        spelled: The target as ``BACKENDS.build`` takes it.
        shipped: What was written.
        made: The folder.
        was_searched_for: Whether the assignment had the target's numerics.
        why: The network is streamed.

    Raises:
        ModelError: If a weight is decoded as another one, or the files are too large.
    """
    assert isinstance(target, DecodesApart)
    kinds: dict[str, str] = {}

    def weights() -> Iterator[tuple[str, Tensor]]:
        for found in target.decoded(made):
            kinds[found.name] = found.kind
            yield found.name, found.weight.float()

    apart = check_decoded(target, shipped, weights())
    check_kinds(target, shipped, kinds)
    sizes = check_size(target, shipped, made)
    if was_searched_for:
        check_budget(target, shipped.assignment, sizes.found)
    return StreamedCheck(
        target=spelled,
        fingerprint=shipped.assignment.fingerprint,
        num_layers=len(shipped.quantized),
        max_weight_difference=apart,
        file_bytes=sizes.found,
        predicted_bytes=sizes.predicted,
        promised_bytes=sizes.promised,
        dtype=DTYPE_NAMES[parameter_dtype(shipped.model)],
        versions={name: version(name) for name in ("mpq", "torch", *target.packages)},
        kinds=counted(kinds.values()),
        was_searched_for=was_searched_for,
        streamed=why,
    )
