"""Experts that transformers keeps in one parameter, and their matrices in its checkpoints.

A checkpoint has a matrix for every expert and projection (``experts.3.w1.weight``); the loader
decodes and stacks them. Names and cuts are asked of transformers itself, by numbers.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

PARAMETER: Final = re.compile(r"(?:.*\.)?experts\.\w*[A-Za-z]\w*")
"""The name of a parameter ``[E, O, K]``; a layer of it is called ``<parameter>.<expert>``."""
CHECKPOINT_NAMES: Final = r"re:.*\.experts\.[0-9]+\..*"
"""Matches an expert's matrix, whatever a checkpoint calls its block and projection."""
GATE_AND_UP: Final = re.compile(r".*\bgate_up_\w+\.[0-9]+")


@final
@dataclass(frozen=True)
class ExpertMatrix:
    """One matrix of a checkpoint: consecutive rows of a layer.

    Args:
        name: In the checkpoint, without ``.weight``.
        rows: Of the layer's ``[O, K]``.
    """

    name: str
    rows: slice


def is_expert(name: str) -> bool:
    """Whether a layer of that name may be a part of a parameter.

    >>> is_expert("mlp.experts.down_proj.3"), is_expert("mlp.experts.3.down_proj")
    (True, False)
    """
    parameter, _, expert = name.rpartition(".")
    return expert.isdigit() and PARAMETER.fullmatch(parameter) is not None


def num_matrices(name: str) -> int:
    """How many matrices of a checkpoint a layer is: gate and up are two."""
    return 2 if GATE_AND_UP.fullmatch(name) else 1


def expert_parameters(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Parameters ``[E, O, K]`` of fused experts, by name."""
    found = {
        f"{path}.{own}": parameter
        for path, module in modules.items()
        for own, parameter in module._parameters.items()
        if parameter is not None and parameter.ndim == 3
    }
    return {name: parameter for name, parameter in found.items() if PARAMETER.fullmatch(name)}


def expert_names(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """What the layers of all fused experts are called, whether data reaches them or not."""
    for name, parameter in expert_parameters(modules).items():
        yield from (f"{name}.{expert}" for expert in range(len(parameter)))


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[ExpertMatrix, ...]]] = WeakKeyDictionary()


def expert_matrices(model: nn.Module) -> Mapping[str, tuple[ExpertMatrix, ...]]:
    """Layer name to its matrices in a checkpoint, of a network of transformers.

    Empty where the network's checkpoints have the experts stacked, or transposed, and where this
    release of transformers decodes none.
    """
    if model not in _KNOWN:
        _KNOWN[model] = _asked(model)
    return _KNOWN[model]


def _asked(model: nn.Module) -> dict[str, tuple[ExpertMatrix, ...]]:
    parameters = expert_parameters(dict(model.named_modules()))
    if not parameters or not hasattr(getattr(model, "config", None), "model_type"):
        return {}
    try:
        from transformers.integrations.compressed_tensors import (  # noqa: F401
            CompressedTensorsDequantize,
        )
    except ImportError:
        return {}
    found: dict[str, tuple[ExpertMatrix, ...]] = {}
    for name, parameter in parameters.items():
        # Every row is its own place, so that what comes out tells where it came from.
        num_experts, num_rows, _ = parameter.shape
        places = torch.arange(num_experts * num_rows).reshape(num_experts, num_rows, 1)
        parts = in_checkpoint(model, {name: places})
        own: dict[str, list[ExpertMatrix]] = {}
        for key, part in parts.items():
            expert, rows = _place(part, num_rows)
            if rows is not None and key.endswith(".weight"):
                matrix = ExpertMatrix(key.removesuffix(".weight"), rows)
                own.setdefault(f"{name}.{expert}", []).append(matrix)
        found |= {layer: tuple(matrices) for layer, matrices in own.items()}
    return {x: found[x] for x in found if len(found[x]) == num_matrices(x)}


def _place(part: Tensor, num_rows: int) -> tuple[int, slice | None]:
    """The expert and the rows that a part ``[R, 1]`` of the places is; ``None``: no rows of one."""
    if part.ndim != 2 or part.shape[1] != 1:
        return 0, None
    first = int(part[0, 0])
    if not torch.equal(part[:, 0], torch.arange(first, first + len(part))):
        return 0, None
    expert, start = divmod(first, num_rows)
    return expert, slice(start, start + len(part))


def in_checkpoint(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of a network as its checkpoints have them: other names, fused ones in parts."""
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Tensor] = revert_weight_conversion(model, dict(tensors))
    return reverted
