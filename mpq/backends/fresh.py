"""Running an exported folder in a process that has seen nothing else: ``mpq.backends.__main__``.

The parent leaves ``batches.pt``; the child leaves ``answer.pt``, ``others.pt`` of other settings,
and ``weights.safetensors``, or the sentence of an error as JSON on its standard output.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import torch
from torch import Tensor

import mpq.errors
from mpq.errors import ModelError, MpqError
from mpq.network.examples import Batch

if TYPE_CHECKING:
    from mpq.backends.runtime import Loaded
    from mpq.backends.target import Target

ANSWER: Final = "answer.pt"
OTHERS: Final = "others.pt"
LIMIT_S: Final = 3600.0
"""A runtime that takes longer for a few batches is taken for one that hangs."""


@final
@dataclass(frozen=True, eq=False)
class FreshRun:
    """What a runtime said in its own process.

    Args:
        outputs: Of every batch, as ``Loaded.run`` gives them.
        seconds: Of the second run of the first batch, when everything is warm.
        versions: Package to version.
        kinds: Layer name to what it was loaded as.
        weights_file: safetensors: layer name to ``[O, K]`` float32.
        others: What other settings are called to their outputs (``Target.load_otherwise``), or to
            why there are none.
        more: Of every batch the other outputs, by path; empty where the runtime tells none.
    """

    outputs: tuple[Tensor, ...]
    seconds: float
    versions: Mapping[str, str]
    kinds: Mapping[str, str]
    weights_file: Path
    others: Mapping[str, tuple[Tensor, ...] | str] = field(default_factory=dict)
    more: tuple[Mapping[str, Tensor], ...] = ()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as the tool's reader decodes them, one at a time."""
        from safetensors import safe_open

        with safe_open(self.weights_file, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def run_fresh(
    target: "Target", spelled: str, folder: Path, batches: Sequence[Batch], exchange: Path
) -> FreshRun:
    """Loads and runs a folder in a process of its own.

    Args:
        target: What wrote it.
        spelled: The target as ``BACKENDS.build`` takes it.
        folder: What it wrote.
        batches: What is run.
        exchange: An empty folder, in which the two processes meet.

    Raises:
        ModelError: If the runtime refuses the file or breaks down.
        MissingDependencyError: If the runtime is not installed.
    """
    others: Mapping[str, tuple[Tensor, ...] | str]
    try:
        _ask(target, [spelled, str(folder), str(exchange)], batches, exchange)
        others = torch.load(exchange / OTHERS, weights_only=True)
    except ModelError as error:
        # Without an answer it ended before it tried other settings.
        if not (exchange / ANSWER).exists():
            raise
        others = {"other settings": str(error)}
    found = torch.load(exchange / ANSWER, weights_only=True)
    return FreshRun(
        tuple(found["outputs"]),
        found["seconds"],
        found["versions"],
        found["kinds"],
        exchange / "weights.safetensors",
        others,
        tuple(found["more"]),
    )


def run_batches(
    loaded: "Loaded", batches: Sequence[Batch]
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The output of every batch that is scored, and all others by path.

    Args:
        loaded: What a runtime made of a file.
        batches: What is run.
    """
    from mpq.backends.runtime import ManyOutputs

    if not isinstance(loaded, ManyOutputs):
        return [loaded.run(batch).float().clone() for batch in batches], []
    outputs, more = [], []
    for batch in batches:
        first, *others = loaded.run_all(batch).items()
        outputs.append(first[1].float().clone())
        more.append({path: x.float().clone() for path, x in others})
    return outputs, more


@torch.no_grad()
def run_otherwise(
    settings: Mapping[str, Callable[[], "Loaded"]], batches: Sequence[Batch]
) -> dict[str, tuple[Tensor, ...] | str]:
    """Outputs of every batch under other settings; where there are none, the reason.

    Args:
        settings: As ``Target.load_otherwise`` gives them.
        batches: What is run.
    """
    found: dict[str, tuple[Tensor, ...] | str] = {}
    for name, load in settings.items():
        try:
            loaded = load()
            found[name] = tuple(loaded.run(batch).float().clone() for batch in batches)
        # Whatever a runtime raises: these settings are told and not judged.
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            found[name] = f"{type(error).__name__}: {said}"
    return found


def trace_fresh(
    target: "Target", spelled: str, folder: Path, batch: Batch, exchange: Path
) -> Mapping[str, Tensor]:
    """What every layer of a folder's network reads and gives, in a process of its own.

    Args:
        target: What wrote it.
        spelled: The target as ``BACKENDS.build`` takes it.
        folder: What it wrote.
        batch: What is run.
        exchange: A folder, in which the two processes meet.

    Returns:
        As ``mpq.backends.layerwise.traced``; empty where the runtime does not show its layers.

    Raises:
        ModelError: If the runtime refuses the file or breaks down.
        MissingDependencyError: If the runtime is not installed.
    """
    from safetensors.torch import load_file

    _ask(target, [spelled, str(folder), str(exchange), "modules"], [batch], exchange)
    return load_file(exchange / "modules.safetensors")


def _ask(
    target: "Target", arguments: Sequence[str], batches: Sequence[Batch], exchange: Path
) -> None:
    told = [(batch.args, dict(batch.kwargs), batch.is_whole, batch.axes) for batch in batches]
    torch.save(told, exchange / "batches.pt")
    command = [sys.executable, "-m", "mpq.backends", str(os.getpid()), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"{target.name}: the runtime did not answer within {LIMIT_S:.0f} seconds"
        ) from error
    if ended.returncode:
        raise _reported(target, ended)


def _reported(target: "Target", ended: "subprocess.CompletedProcess[str]") -> MpqError:
    """The child's own error where it has one, else the end of what it said."""
    last = ended.stdout.strip().rpartition("\n")[2]
    if last.startswith('{"mpq_error"'):
        told = json.loads(last)
        kind: type[MpqError] = getattr(mpq.errors, told["mpq_error"])
        # Some errors take other arguments than a text.
        return (
            kind(told["text"]) if kind.__init__ is MpqError.__init__ else ModelError(told["text"])
        )
    said = ended.stderr.strip().splitlines() or ["without a word"]
    return ModelError(f"{target.name}: its runtime ended with {ended.returncode}: {said[-1]}")
