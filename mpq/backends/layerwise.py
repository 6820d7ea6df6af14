"""Two networks module by module: where the first one computes something else than the other."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.modules import hooks

INPUT, OUTPUT = "input:", "output:"
"""Before the name of a module: what its first call read and gave."""


@runtime_checkable
class Stepwise(Protocol):
    """A simulation that is no network of modules, and compares its own steps."""

    def first_apart(self, batch: Batch, found: Mapping[str, Tensor]) -> str:
        """The first step whose output differs, for people; empty where none does.

        Args:
            batch: What was run.
            found: What the runtime told, by names that both know.
        """


@torch.no_grad()
def traced(module: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """What the first call of every module read and gave, in the order in which calls end.

    Args:
        module: Its parts are looked at while it runs, and left as found.
        run: Runs it once.

    Returns:
        ``INPUT`` and ``OUTPUT`` with a module's name to its first tensor, float32, on the CPU.
    """
    read: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    parts = [(name, part) for name, part in module.named_modules() if name]
    handles = [
        handle
        for name, part in parts
        for handle in (
            # First of all, as rounding an input is a hook of its own in a simulation.
            part.register_forward_pre_hook(
                partial(_begins, name, read), prepend=True, with_kwargs=True
            ),
            part.register_forward_hook(partial(_ends, name, read, found)),
        )
    ]
    with hooks(handles):
        run()
    return found


def first_apart(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float
) -> str:
    """The first module whose output differs, for people; empty where none does.

    Args:
        expected: ``traced`` of a network; its order counts.
        found: That of another one, with the same names where modules are the same.
        tolerance: Accepted difference, in standard deviations of what a module gives.
    """
    for key, output in expected.items():
        name = key.removeprefix(OUTPUT)
        if key == name or not _is_apart(output, found.get(key), tolerance):
            continue
        return (
            f"the first layer whose output differs is {name!r}, by {_apart(output, found[key])} "
            f"(standard deviation {float(output.std()):.3g})"
            + _of_input(expected.get(INPUT + name), found.get(INPUT + name), tolerance)
        )
    return ""


def _of_input(expected: Tensor | None, found: Tensor | None, tolerance: float) -> str:
    """Whether a module read the same; empty where that is not known, as of token ids."""
    if expected is None or found is None:
        return ""
    is_other = _is_apart(expected, found, tolerance)
    return "; it reads something else already" if is_other else "; it reads the same"


def _begins(
    name: str, read: dict[str, Tensor], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    tensor = _first_tensor((*args, *kwargs.values()))
    if tensor is not None and name not in read:
        # Copied, as what follows may write into it.
        read[name] = tensor.detach().float().cpu().clone()


def _ends(
    name: str,
    read: Mapping[str, Tensor],
    found: dict[str, Tensor],
    _: nn.Module,
    __: object,
    outputs: Any,
) -> None:
    tensor = _first_tensor(outputs if isinstance(outputs, tuple | list) else (outputs,))
    if tensor is None or OUTPUT + name in found:
        return
    if name in read:
        found[INPUT + name] = read[name]
    found[OUTPUT + name] = tensor.detach().float().cpu().clone()


def _first_tensor(values: Any) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _is_apart(expected: Tensor, found: Tensor | None, tolerance: float) -> bool:
    if found is None:  # the other network has no such module
        return False
    if expected.shape != found.shape:
        return True
    accepted = tolerance * float(expected.std() if expected.numel() > 1 else expected.abs().max())
    # A comparison with nan is false.
    return not float((expected - found).abs().max()) <= accepted


def _apart(expected: Tensor, found: Tensor) -> str:
    if expected.shape != found.shape:
        return f"its shape, {tuple(found.shape)} for {tuple(expected.shape)}"
    return f"{float((expected - found).abs().max()):.3g}"
