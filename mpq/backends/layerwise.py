"""Two networks module by module: where the first one computes something else than the other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.modules import hooks

INPUT, OUTPUT = "input:", "output:"
"""Before the name of a module's call: what it read and gave."""


def call_name(name: str, number: int) -> str:
    """A module's first call has the module's name, the others their number behind it."""
    return name if number == 1 else f"{name} (call {number})"


def layer_of(call: str) -> str:
    """The name of the module that a call is of."""
    return call.partition(" (call ")[0]


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
    """What every call of every module read and gave, in the order in which calls end.

    Args:
        module: Its parts are looked at while it runs, and left as found.
        run: Runs it once.

    Returns:
        ``INPUT`` and ``OUTPUT`` with a call's name to its first tensor, float32, on the CPU.
    """
    read: dict[str, list[Tensor | None]] = defaultdict(list)
    counts: Counter[str] = Counter()
    found: dict[str, Tensor] = {}
    parts = [(name, part) for name, part in module.named_modules() if name]
    handles = [
        handle
        for name, part in parts
        for handle in (
            # First of all, as rounding an input is a hook of its own in a simulation.
            part.register_forward_pre_hook(
                partial(_begins, read[name]), prepend=True, with_kwargs=True
            ),
            part.register_forward_hook(partial(_ends, name, read[name], counts, found)),
        )
    ]
    with hooks(handles):
        run()
    return found


def first_apart(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    tolerance: float,
    accepted: Mapping[str, float] | None = None,
) -> str:
    """The first module whose output differs, for people; empty where none does.

    Args:
        expected: ``traced`` of a network; its order counts.
        found: That of another one, with the same names where modules are the same.
        tolerance: Accepted difference, in standard deviations of what a module gives.
        accepted: What is accepted besides, by the keys of ``expected``.
    """
    more = accepted or {}
    for key, output in expected.items():
        name = key.removeprefix(OUTPUT)
        if key == name or not is_apart(output, found.get(key), tolerance, more.get(key, 0.0)):
            continue
        read = INPUT + name
        of_input = _of_input(expected.get(read), found.get(read), tolerance, more.get(read, 0.0))
        return (
            f"the first layer whose output differs is {name!r}, by "
            f"{difference(output, found[key])} (standard deviation {float(output.std()):.3g})"
            f"{of_input}"
        )
    return ""


def _of_input(expected: Tensor | None, found: Tensor | None, tolerance: float, more: float) -> str:
    """Nothing where one does not tell, as of ids, which are not rounded."""
    if expected is None or found is None:
        return ""
    is_other = is_apart(expected, found, tolerance, more)
    return f"; it reads {'something else already' if is_other else 'the same'}"


def _begins(
    read: list[Tensor | None], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    tensor = first_tensor((*args, *kwargs.values()))
    # Copied, as what follows may write into it.
    read.append(None if tensor is None else tensor.detach().float().cpu().clone())


def _ends(
    name: str,
    read: list[Tensor | None],
    counts: Counter[str],
    found: dict[str, Tensor],
    _: nn.Module,
    __: object,
    outputs: Any,
) -> None:
    tensor = first_output(outputs)
    # The last that began, as a module may call itself.
    before = read.pop()
    counts[name] += 1
    if tensor is None:
        return
    call = call_name(name, counts[name])
    if before is not None:
        found[INPUT + call] = before
    found[OUTPUT + call] = tensor.detach().float().cpu().clone()


def first_output(outputs: Any) -> Tensor | None:
    """What counts of what a module gives: a router may give several tensors."""
    return first_tensor(outputs if isinstance(outputs, tuple | list) else (outputs,))


def first_tensor(values: Any) -> Tensor | None:
    """The first of several values that has numbers."""
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def is_apart(expected: Tensor, found: Tensor | None, tolerance: float, more: float) -> bool:
    """Whether two tensors are further apart than is accepted.

    Args:
        expected: What a module gives or reads.
        found: The same in another network; ``None``: it has no such module, and is not apart.
        tolerance: Accepted difference, in standard deviations of ``expected``.
        more: What is accepted besides; infinite: anything but nan, of any shape.
    """
    if found is None:
        return False
    found = in_shape(found, expected)
    if expected.shape != found.shape:
        return more < float("inf")
    if not expected.numel():  # an expert may be called with no rows
        return False
    spread = float(expected.std() if expected.numel() > 1 else expected.abs().max())
    # A comparison with nan is false.
    return not float((expected - found).abs().max()) <= max(tolerance * spread, more)


def in_shape(found: Tensor, expected: Tensor) -> Tensor:
    """Some runtimes have the rows of all examples along one axis."""
    is_same = found.numel() == expected.numel() and found.shape[-1:] == expected.shape[-1:]
    return found.reshape(expected.shape) if is_same else found


def difference(expected: Tensor, found: Tensor) -> str:
    """The largest difference of two tensors, or what shape they have, for people."""
    found = in_shape(found, expected)
    if expected.shape != found.shape:
        return f"its shape, {tuple(found.shape)} for {tuple(expected.shape)}"
    return f"{float((expected - found).abs().max()):.3g}"
