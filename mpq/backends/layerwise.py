"""Two networks module by module: where the first one computes something else than the other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mpq.network.examples import Batch
from mpq.network.modules import hooks, weight_of

INPUT, OUTPUT = "input:", "output:"
"""Before the name of a module's call: what it read and gave."""


def call_name(name: str, number: int) -> str:
    """A module's first call has the module's name, the others their number behind it."""
    return name if number == 1 else f"{name} (call {number})"


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
        if key == name or not _is_apart(output, found.get(key), tolerance, more.get(key, 0.0)):
            continue
        read = INPUT + name
        of_input = _of_input(expected.get(read), found.get(read), tolerance, more.get(read, 0.0))
        return (
            f"the first layer whose output differs is {name!r}, by {_apart(output, found[key])} "
            f"(standard deviation {float(output.std()):.3g}){of_input}"
        )
    return ""


@torch.no_grad()
def one_apart(
    module: nn.Module, layers: Iterable[str], found: Mapping[str, Tensor], tolerance: float
) -> str:
    """The first layer that makes something else of what it read, for people; empty: none does.

    Args:
        module: A network. Layers that round their inputs read the very numbers of ``found``.
        layers: Names of those that read one tensor.
        found: ``traced`` of another network; a call of which one end is not told is left out.
        tolerance: Accepted difference, in standard deviations of what a layer gives.
    """
    for name in layers:
        part = module.get_submodule(name)
        for number in count(1):
            call = call_name(name, number)
            output, read = found.get(OUTPUT + call), found.get(INPUT + call)
            if output is None:
                break
            if read is None:
                continue
            expected = part(read.to(weight_of(part))).float().cpu()
            if _is_apart(expected, output, tolerance, 0.0):
                return (
                    f"the first layer that makes something else of what it reads is {call!r}, by "
                    f"{_apart(expected, output)} (standard deviation {float(expected.std()):.3g})"
                )
    return ""


@torch.no_grad()
def any_apart(
    module: nn.Module,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    tolerance: float,
) -> str:
    """``one_apart`` of all that read one tensor, norms as well, in the order of their calls.

    Where inputs are rounded while running, a layer may read what lies on the other side of a tie:
    of the very numbers that it reads it makes the same in both networks.

    Args:
        module: The network.
        expected: ``traced`` of it.
        found: That of another one.
        tolerance: As in ``one_apart``.
    """
    alike = {x: _in_shape(y, expected[x]) for x, y in found.items() if x in expected}
    names = [x.removeprefix(OUTPUT) for x in expected if x.startswith(OUTPUT)]
    parts = dict(module.named_modules())
    weighted = [x for x in names if isinstance(getattr(parts.get(x), "weight", None), nn.Parameter)]
    # A gated norm reads more: it is none that makes its output of its input.
    plain = [x for x in weighted if not one_apart(module, [x], expected, tolerance)]
    return one_apart(module, plain, alike, tolerance)


def _of_input(expected: Tensor | None, found: Tensor | None, tolerance: float, more: float) -> str:
    """Nothing where one does not tell, as of ids, which are not rounded."""
    if expected is None or found is None:
        return ""
    is_apart = _is_apart(expected, found, tolerance, more)
    return f"; it reads {'something else already' if is_apart else 'the same'}"


def _begins(
    read: list[Tensor | None], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    tensor = _first_tensor((*args, *kwargs.values()))
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
    tensor = _first_tensor(outputs if isinstance(outputs, tuple | list) else (outputs,))
    # The last that began, as a module may call itself.
    before = read.pop()
    counts[name] += 1
    if tensor is None:
        return
    call = call_name(name, counts[name])
    if before is not None:
        found[INPUT + call] = before
    found[OUTPUT + call] = tensor.detach().float().cpu().clone()


def _first_tensor(values: Any) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point()), None)


def _is_apart(expected: Tensor, found: Tensor | None, tolerance: float, more: float) -> bool:
    if found is None:  # the other network has no such module
        return False
    found = _in_shape(found, expected)
    if expected.shape != found.shape:
        return True
    spread = float(expected.std() if expected.numel() > 1 else expected.abs().max())
    # A comparison with nan is false.
    return not float((expected - found).abs().max()) <= max(tolerance * spread, more)


def _in_shape(found: Tensor, expected: Tensor) -> Tensor:
    """Some runtimes have the rows of all examples along one axis."""
    is_same = found.numel() == expected.numel() and found.shape[-1:] == expected.shape[-1:]
    return found.view_as(expected) if is_same else found


def _apart(expected: Tensor, found: Tensor) -> str:
    found = _in_shape(found, expected)
    if expected.shape != found.shape:
        return f"its shape, {tuple(found.shape)} for {tuple(expected.shape)}"
    return f"{float((expected - found).abs().max()):.3g}"
