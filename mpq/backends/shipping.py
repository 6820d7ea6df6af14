"""An export to a target: written, run by its own runtime, compared, and only then there."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import nn

from mpq._support.files import prepared_folder, remove_dead, staging
from mpq.backends.comparing import compared
from mpq.backends.decoded import decoded_check
from mpq.backends.export_check import ExportCheck, StreamedCheck
from mpq.backends.fresh import run_fresh, trace_fresh
from mpq.backends.searched import first_examples, refuse_batches
from mpq.backends.target import Shipped, Target
from mpq.errors import OutputError
from mpq.network.example_axes import as_searched
from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.same_start import begin_alike
from mpq.problem.assignment import Assignment

Check = TypeVar("Check", ExportCheck, StreamedCheck)
STAGED: Final = "export"
NO_SPACE: Final = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
FULL_BYTES: Final = 4096
"""A disk with fewer left is full, whatever a writer makes of it: half a file, another error."""


def ship(
    target: Target,
    spelled: str,
    assignment: Assignment,
    folder: Path,
    model: nn.Module,
    calibration: Any,
    held_out: Any = None,
) -> ExportCheck:
    """Writes a folder, runs it with the target's runtime, and compares it with the simulation.

    The folder appears when all of that went well, with ``export.json`` in it. What an export that
    was killed has left beside it is removed first.

    Args:
        target: What writes and loads it.
        spelled: The target as ``BACKENDS.build`` takes it.
        assignment: Its layers' precisions.
        folder: Where it goes: a folder that is not there, or empty.
        model: The network that the assignment was found for, in evaluation mode.
        calibration: Examples, as ``Calibration`` takes them, for ranges that the target adds.
        held_out: The first of these are run; without any, those of ``calibration`` are.

    Raises:
        PrecisionError: If the target cannot hold a layer's precision; names it.
        ModelError: If the network is none that the target knows, or what its runtime computes is
            not what the simulation computes; names the first layer that differs.
        MismatchError: If the assignment belongs to another network.
        MissingDependencyError: If a package is missing.
        OutputError: If something is at the folder already, or it cannot be written.
    """
    target, shipped, was_searched_for = _begun(target, assignment, folder, model)
    data = _as_searched(Calibration.of(calibration), shipped)
    is_held_out = held_out is not None
    run = _as_searched(Calibration.of(held_out), shipped) if is_held_out else data
    refuse_batches(target, run)
    batches = first_examples(run, model, shipped.metric)
    shipped = replace(shipped, calibration=data, examples=tuple(batches))

    def checked(made: Path, exchange: Path) -> ExportCheck:
        ran = run_fresh(target, spelled, made, batches, exchange)
        few = target.traced_batch(batches)
        trace = partial(trace_fresh, target, spelled, made, few, exchange)
        check = compared(target, spelled, shipped, batches, ran, made, was_searched_for, trace)
        return replace(check, examples_are_held_out=is_held_out)

    return _appearing(folder, partial(target.write, shipped), checked)


def ship_streamed(
    target: Target,
    spelled: str,
    assignment: Assignment,
    folder: Path,
    model: nn.Module,
    why: str,
) -> StreamedCheck:
    """Writes the folder of a network that is streamed: decoded weight by weight, and not run.

    Args:
        target: As for ``ship``, which raises the same.
        spelled: As for ``ship``.
        assignment: As for ``ship``.
        folder: As for ``ship``.
        model: As for ``ship``.
        why: The network is streamed.
    """
    target, shipped, was_searched_for = _begun(target, assignment, folder, model)

    def decoded(made: Path, _: Path) -> StreamedCheck:
        return decoded_check(target, spelled, shipped, made, was_searched_for, why)

    return _appearing(folder, partial(target.write, shipped), decoded)


def _begun(
    target: Target, assignment: Assignment, folder: Path, model: nn.Module
) -> tuple[Target, Shipped, bool]:
    """The target for this network, what it writes, and whether that was searched for it."""
    target = target.fitted(model)
    target.check(assignment.layers, dict(model.named_modules(remove_duplicate=False)))
    if assignment.weights is not None and target.arithmetic.scale_sign == "positive":
        assignment.weights.check_positive(target.name)
    # Here, since one that was killed when all was done leaves a folder that the next one refuses.
    remove_dead(folder.parent, STAGED)
    _refuse_what_is_there(folder)
    target.check_network(model)
    was_searched_for = assignment.numerics == target.arithmetic
    assignment = replace(assignment, numerics=target.arithmetic)
    return target, Shipped.of(model, assignment), was_searched_for


def _appearing(
    folder: Path, write: Callable[[Path], None], check: Callable[[Path, Path], Check]
) -> Check:
    """What is written appears when it was checked, with ``export.json`` in it.

    Args:
        folder: Where.
        write: Given an empty folder.
        check: Given that folder, and an empty one beside it.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        with (
            prepared_folder(folder.parent),
            staging(folder.parent, STAGED) as place,
            _telling_no_space(place),
        ):
            made, exchange = place / "made", place / "exchange"
            made.mkdir()
            exchange.mkdir()
            write(made)
            found = check(made, exchange)
            (made / "export.json").write_text(found.to_json(), encoding="utf-8")
            _appear(made, folder)
    except OSError as error:
        raise OutputError(f"cannot write the folder {folder}: {error.strerror or error}") from error
    return found


@contextmanager
def _telling_no_space(place: Path) -> Iterator[None]:
    """Raises the system's error where the disk is full: every tool's writer has one of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever it is, it is raised again
        told = next((text for text in NO_SPACE if text in str(error)), None)
        # Asked before the files are removed. Some writers say nothing, and leave half a file.
        if told is None and _free_bytes(place) >= FULL_BYTES:
            raise
        raise OSError(errno.ENOSPC, told or NO_SPACE[0]) from error


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _refuse_what_is_there(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; name a folder that is not, or remove it")


def _appear(made: Path, folder: Path) -> None:
    """Gives a finished folder its name; of two exports that end at once, the second is refused."""
    try:
        if folder.is_dir():
            folder.rmdir()  # empty, as was asked before
        # Not `shutil.move`, which would put it into a folder that has appeared meanwhile.
        made.rename(folder)
    except OSError:
        _refuse_what_is_there(folder)
        raise


def _as_searched(data: Calibration, shipped: Shipped) -> Calibration:
    """The data with the search's examples: cut where they lie, whole batches where rows mix."""
    seed = shipped.assignment.metadata.allow_randomness
    # A copy of the modules, as it gets hooks, which an export would trace.
    module = begin_alike(share_parameters(shipped.module), seed)
    return as_searched(module, data, shipped.metric, seed is not None)
