"""A call of a score: one finite number, or an error that names the score and what it was asked."""

from collections.abc import Callable, Mapping
from math import inf, isfinite
from numbers import Real
from pathlib import Path
from traceback import extract_tb
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from mpq._support.names import shortened
from mpq.errors import MpqError, ScoreError
from mpq.quantization.fingerprint import checksum
from mpq.quantization.precision import ORIGINAL, Precision

ORIGINAL_NETWORK: Final = "the original network"
_NAMED: Final = 3
"""Layers that an error lists; further ones are counted."""
_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_OURS: Final = str(Path(__file__).parents[1])


def in_precisions(precisions: Mapping[str, Precision]) -> str:
    """A network with layers in these precisions, in words.

    >>> in_precisions({"fc": Precision.parse("w4a8")})
    'a network with fc in w4a8'
    """
    changed = [f"{name} in {p}" for name, p in precisions.items() if p != ORIGINAL]
    if not changed:
        return ORIGINAL_NETWORK
    left = len(changed) - _NAMED
    more = f" and {left} more" if left > 0 else ""
    return f"a network with {', '.join(changed[:_NAMED])}{more}"


def asked_number(
    call: Callable[[], Any],
    module: nn.Module,
    name: str,
    what: str,
    is_own: bool,
) -> float:
    """What a score says of a network.

    Args:
        call: Of its function, with the network.
        module: The network; it is in evaluation mode afterwards, however the call ends.
        name: The score's.
        what: The network, in words.
        is_own: Whether the function is the user's. Errors of ours are its own matter then, and
            numbers of the network are compared themselves, by two checksums of all parameters, as
            what is written through ``.data`` or NumPy is not counted by torch.

    Raises:
        ScoreError: If the function fails, returns no finite number, or changes the network: its
            mode, where it is, what its weights are kept in, or they themselves.
        MpqError: If a built-in score cannot be made of its examples.
    """
    before, numbers = _marks(module), _checksums(module) if is_own else {}
    try:
        found = call()
    # Whatever the user's function does not handle, and a script's end, which would be ours.
    except (Exception, SystemExit) as error:
        module.eval()
        if isinstance(error, MpqError) and not is_own:
            raise
        raise ScoreError(
            f"the score {name} (--score) failed when it was called with {what}: "
            f"{type(error).__name__}: {error}{_place(error)}; it takes one network, in evaluation "
            "mode and without gradients, and returns one finite number, of any quantized network"
        ) from error
    if module.training:
        module.eval()
        raise ScoreError(
            f"the score {name} (--score) left {what} in training mode: call eval() before it "
            "returns"
        )
    changed = {parameter for parameter, _ in before.items() ^ _marks(module).items()}
    # Of the same tensors: another one may be where no numbers are.
    if is_own and not changed:
        changed = {parameter for parameter, _ in numbers.items() ^ _checksums(module).items()}
    if changed:
        raise ScoreError(
            f"the score {name} (--score) changed {what} ({shortened(min(changed))}), which others "
            "are still to be asked of: let it work on copy.deepcopy(network)"
        )
    value = _single(found)
    if value is None or not isfinite(value):
        raise ScoreError(
            f"the score {name} (--score) returns one finite number; got {_told(found)} of {what}: "
            f"{_advice(found)}"
        )
    return value


def _marks(module: nn.Module) -> dict[str, tuple[object, ...]]:
    """By which tensors are known that stay; no pass over their numbers."""
    return {
        name: (id(x), x.dtype, x.device, None if x.is_inference() else x._version)
        for name, x in _staying(module).items()
    }


def _checksums(module: nn.Module) -> dict[str, str]:
    """Of the numbers of tensors that stay, where they have some in an order."""
    return {
        name: checksum([x])
        for name, x in _staying(module).items()
        if x.layout is torch.strided and not x.is_meta
    }


def _staying(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, and what BatchNorm remembers, by name.

    Other buffers may change in a call, such as those of a network with a state.
    """
    kept: dict[str, Tensor] = dict(module.named_parameters())
    for name, part in module.named_modules():
        if isinstance(part, _NORMS):
            kept |= {f"{name}.{buffer}": x for buffer, x in part.named_buffers()}
    return kept


def _single(found: Any) -> float | None:
    """As a float; ``None``: it is no number, or several."""
    value = found
    if isinstance(found, Tensor | np.ndarray):
        value = found.item() if _count(found) == 1 else None
    # A truth is a number to Python, and no score: of a comparison that was meant to be counted.
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # of a whole number without end
        return inf


def _count(found: "Tensor | np.ndarray[Any, Any]") -> int:
    return found.numel() if isinstance(found, Tensor) else found.size


def _told(found: Any) -> str:
    kind, single = type(found).__name__, _single(found)
    if single is not None:
        return f"{single} (a {kind})"
    if isinstance(found, Tensor | np.ndarray) and _count(found) != 1:
        return f"a {kind} of shape {list(found.shape)}"
    if found is None or isinstance(found, bool | np.bool_ | str | Tensor | np.ndarray):
        return f"{shortened(repr(found))} (a {kind})"
    return f"a {kind}"


def _advice(found: Any) -> str:
    if found is None:
        return "is a return missing?"
    if _single(found) is not None:
        return "of a network that answers nonsense return the worst number that is possible"
    if isinstance(found, Tensor | np.ndarray) and _count(found) != 1:
        return "return their mean, or the one that counts"
    if isinstance(found, bool | np.bool_ | Tensor | np.ndarray):
        return "if yes counts as 1 and no as 0, return float(...)"
    return "return a float"


def _place(error: BaseException) -> str:
    """Where in the user's code, as far as the call got there."""
    frames = [x for x in extract_tb(error.__traceback__) if not x.filename.startswith(_OURS)]
    if not frames:
        return ""
    last = [x for x in frames if x.filename == frames[0].filename][-1]
    return f" ({Path(last.filename).name}, line {last.lineno})"
