"""Layer input modification: blocks that turn what they are given count as important."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.arguments import tensors_in
from mpq.network.modules import hooks
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.importance import importance_table


@final
@dataclass(frozen=True)
class LayerInputModification(SensitivityEstimator):
    r"""Relative rounding error, times how far the layer's block turns its input.

    .. math:: \iota_\ell = 1 - \mathrm{mean}_t \frac{x_t \cdot y_t}{\lVert x_t \rVert \lVert y_t
        \rVert}

    with ``x`` and ``y`` what the block takes and returns at position ``t``: from 0 (it returns
    what it takes) over 1 to 2. A layer's block is the outermost module, below the whole network,
    that contains the layer, or is the layer, and returns a tensor of the shape that it takes (the
    first tensor of each, of floating-point numbers). Where there is none, the importance is 1.

    LIM of Layer-Wise Quantization (Dumitru et al. 2024, arXiv:2406.17415), which ranks the blocks
    of a language model by minus the cosine and gives the first ones more bits. Departs from it in
    making a table of it (see ``importance_table``), with 1 added, so that no importance is
    negative. Positions that a mask hides are counted. The unit is ``relative``.
    """

    name: ClassVar[str] = "layer-input-modification"
    summary: ClassVar[str] = "rounding error x (1 - cosine of a block's input and output), LIM"

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        return Sensitivity(importance_table(on, layer_input_modifications(on), self.name))


def layer_input_modifications(on: Estimation) -> list[float]:
    """``[L]`` one minus the mean cosine of each layer's block; 1 where there is none."""
    network, paths = on.network, {name: _path(name) for name in on.names}
    names = dict.fromkeys(name for path in paths.values() for name in path)
    blocks = {name: _Block() for name in names}
    handles = []
    for name, block in blocks.items():
        module = network.module.get_submodule(name)
        # With keywords, because a network may pass the input by its name.
        handles.append(module.register_forward_pre_hook(block.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(block.leave))
    with hooks(handles), torch.no_grad():
        for batch in on.batches("layer inputs"):
            network.outputs(batch)
    outermost = (
        next((blocks[name] for name in path if blocks[name].positions), None)
        for path in paths.values()
    )
    return [1.0 - block.cosine if block else 1.0 for block in outermost]


def _path(name: str) -> list[str]:
    """Names of the modules below the network that contain a layer, from the outermost to itself.

    >>> _path("blocks.0.fc")
    ['blocks', 'blocks.0', 'blocks.0.fc']
    """
    parts = name.split(".") if name else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@dataclass
class _Block:
    """Cosines between what a module takes and what it returns."""

    total: float = 0.0
    positions: int = 0
    # A stack, because a module may be called again before it has returned.
    _taken: list[Tensor | None] = field(default_factory=list)

    @property
    def cosine(self) -> float:
        """Mean over positions."""
        return self.total / self.positions

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the input; a copy, because the module may change it in place."""
        taken = _first_tensor([*args, *kwargs.values()])
        self._taken.append(None if taken is None else taken.detach().clone())

    def leave(self, _: nn.Module, __: Any, output: Any) -> None:
        """Compares it with the output, if that has its shape."""
        taken, given = self._taken.pop(), _first_tensor([output])
        if taken is None or given is None or taken.shape != given.shape:
            return
        # The numbers of a position are on the last axis; those of a pixel on the second.
        axis = 1 if taken.ndim > 3 else -1
        # In float64: of a cosine near 1 what counts is how far it is from 1.
        cosines = F.cosine_similarity(taken.double(), given.double(), dim=axis)
        self.total += float(cosines.sum())
        self.positions += cosines.numel()


def _first_tensor(values: Any) -> Tensor | None:
    """The first tensor, if it holds floating-point numbers."""
    first = next(iter(tensors_in(values)), None)
    return first if first is not None and first.is_floating_point() else None
