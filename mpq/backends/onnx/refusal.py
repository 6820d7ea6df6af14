"""Why torch cannot export a network, for people: where, and what can be done."""

from collections.abc import Iterator
from types import TracebackType

import torch
from torch import nn

from mpq.backends.exported_names import why_unwritable

_BY_NUMBERS = (
    "GuardOnDataDependentSymNode",
    "UserError",
    "DynamicOutputShapeException",
    "DataDependentOutputException",
)
"""What torch raises where control flow or shapes depend on the numbers that are computed."""


def refusal(error: BaseException, root: nn.Module) -> str:
    """What stands in the way of an export.

    Args:
        error: What the exporter raised, with what it was caused by.
        root: The module that was exported.
    """
    causes = list(_causes(error))
    unwritable = why_unwritable(causes, getattr(root, "module", root))
    if unwritable:
        return f"torch cannot export the network to ONNX: {unwritable}"
    cause = causes[1] if len(causes) > 1 else causes[0]
    place = _place(causes, root)
    where = f" in {place}" if place else ""
    kinds = {type(each).__name__ for each in causes}
    # Symbolic sizes have no hash: torch's words for a size that depends on numbers as a dict's key.
    is_hash = any("unhashable type" in str(each) and "Sym" in str(each) for each in causes)
    if is_hash or kinds & set(_BY_NUMBERS):
        return (
            f"torch cannot export the network to ONNX: what is computed{where} depends on the "
            "numbers (a loop over the experts that are hit, an `if` on a tensor, a mask that picks "
            "rows), and a graph is the same for all inputs. Compute all of it and weigh the "
            "results (every expert on every token), or deploy by mpq.quantize"
        )
    # The exporter wraps what was raised into pages of advice; the first line of the cause says
    # most.
    text = str(cause).strip()
    reason = text.splitlines()[0] if text else repr(cause)
    return f"torch cannot export the network to ONNX{where}: {type(cause).__name__}: {reason}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _place(causes: list[BaseException], root: nn.Module) -> str:
    """The innermost named module whose code was running; empty: none is known."""
    names = {id(module): name for name, module in root.named_modules() if name}
    # The deepest cause was raised closest to the user's code.
    for cause in reversed(causes):
        found = ""
        for module in _modules(cause.__traceback__):
            if id(module) in names:
                # The root holds the network under that name.
                name = names[id(module)].removeprefix("module").removeprefix(".")
                found = f"the module {name!r}" if name else "the network's own forward"
        if found:
            return found
    return ""


def _modules(traceback: TracebackType | None) -> Iterator[nn.Module]:
    while traceback is not None:
        owner = traceback.tb_frame.f_locals.get("self")
        # Wrappers of the exporter are modules as well, of torch's own code.
        if isinstance(owner, nn.Module) and not isinstance(owner, torch.fx.GraphModule):
            yield owner
        traceback = traceback.tb_next
