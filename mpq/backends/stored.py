"""What an export's files hold beside what was promised: each weight's bits, and all bytes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn

from mpq.backends.file_size import promised
from mpq.backends.target import Shipped, Target
from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.modules import hooks, stored_tensors, weight_of
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.problem.budget import FILE_BYTES
from mpq.problem.tolerances import is_within


@final
@dataclass(frozen=True)
class Sizes:
    """What an export weighs.

    Args:
        found: Bytes of the files that count as weights.
        predicted: Bytes of all tensors, without headers.
        promised: Bytes that the files have at most, headers included; ``None``: not known before.
        missing: Bytes that they have less than what was to be expected; 0: none.
    """

    found: int
    predicted: int
    promised: int | None
    missing: int


def check_kinds(target: Target, shipped: Shipped, kinds: Mapping[str, str]) -> None:
    """Refuses weights that decode to the right numbers, and are stored in other bits.

    Args:
        target: What wrote the files.
        shipped: What was written.
        kinds: Layer name to what the runtime loaded it as.

    Raises:
        ModelError: Names the first layer that is held as floats, or in another type.
    """
    owners = _owners(shipped)
    for layer in shipped.quantized:
        told = kinds.get(layer.name, "")
        owner = owners[_weight_id(shipped, layer)]
        promised = target.stored_kind(owner, owner.precision)
        if not re.fullmatch(rf"(.* )?{re.escape(promised)}( .*)?", told):
            raise ModelError(
                f"{target.name}: layer {layer.name!r} at {layer.precision} is held as "
                f"{told or 'what its runtime does not tell'}, and {promised} was promised; nothing "
                "was written"
            )


def check_size(target: Target, shipped: Shipped, made: Path) -> Sizes:
    """Weighs the files; refuses those that are larger than what was promised.

    Args:
        target: What wrote the files.
        shipped: What was written.
        made: The folder.

    Raises:
        ModelError: If they are larger than ``promised``, or where that is not known, if there is
            more than tensors and ``Target.header_bytes``; or larger than a search for the target
            was allowed.
    """
    found, predicted = target.file_bytes(made), predicted_bytes(target, shipped)
    size = promised(target, shipped)
    told = predicted if size is None else size.constant_bytes
    if found > told + (target.header_bytes(made) if size is None else 0):
        raise ModelError(
            f"{target.name}: the files have {found} bytes where {told} were promised; nothing "
            "was written"
        )
    if size is None:
        return Sizes(found, predicted, None, max(predicted - found, 0))
    least = max(predicted, told - size.slack_bytes)
    return Sizes(found, predicted, told, max(least - found, 0))


def check_budget(target: Target, assignment: Assignment, found: int) -> None:
    """Refuses files that are larger than the search for this target was allowed to make them.

    Args:
        target: What wrote the files.
        assignment: That was searched for the target.
        found: Bytes of the files.

    Raises:
        ModelError: Says by how much, and what may have changed since.
    """
    for budget in assignment.metadata.budgets:
        if budget.resource == FILE_BYTES and not is_within(found, budget.limit):
            raise ModelError(
                f"{target.name}: the files have {found} bytes, {found - budget.limit:.0f} more "
                f"than the {budget.limit:.15g} that the search was allowed: precisions, tokenizer "
                "or options of the target are no longer those of the search; search again. "
                "Nothing was written"
            )


def predicted_bytes(target: Target, shipped: Shipped) -> int:
    """Bytes of all tensors that the target stores, without headers."""
    owners = _owners(shipped)
    rest = {id(t): t for t in stored_tensors(shipped.module) if id(t) not in owners}
    bits = sum(target.stored_bits(layer, layer.precision) for layer in owners.values())
    return -(-bits // 8) + sum(target.constant_bytes(t) for t in rest.values())


def _owners(shipped: Shipped) -> dict[int, AssignedLayer]:
    """The first layer of every weight: what several layers share is stored once, as its."""
    found: dict[int, AssignedLayer] = {}
    for layer in shipped.quantized:
        found.setdefault(_weight_id(shipped, layer), layer)
    return found


def _weight_id(shipped: Shipped, layer: AssignedLayer) -> int:
    return id(weight_of(shipped.module.get_submodule(layer.name)))


@torch.no_grad()
def told_missing(num_bytes: int, module: nn.Module, batch: Batch) -> str:
    """Says that files are smaller than promised, and which modules no output comes from.

    Args:
        num_bytes: That are missing.
        module: The network, in evaluation mode.
        batch: Examples.
    """
    dead = never_run(module, batch)
    named = ", ".join(map(repr, dead[:3])) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
    writer = "its writer drops what no output needs, or stores once what is equal"
    why = f"the network never runs {named}" if dead else writer
    return f"the files are {num_bytes} bytes smaller than predicted: {why}"


def never_run(module: nn.Module, batch: Batch) -> list[str]:
    """Names of the modules with parameters of their own that a forward pass does not run."""
    waiting = {
        part: name for name, part in module.named_modules() if list(part.parameters(recurse=False))
    }

    def runs(part: nn.Module, *_: object) -> None:
        waiting.pop(part, None)

    with hooks(part.register_forward_hook(runs) for part in list(waiting)):
        module(*batch.args, **batch.kwargs)
    return list(waiting.values())
