"""What a quantized network is tuned for: the original's answers, or what a block of it gives."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.network.modules import hooks
from mpq.network.outputs import check_same_shape, position_weights


class Objective(ABC):
    """A loss of a batch, of which the quantized network has gradients."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Summed over the batch's examples; a scalar.

        Args:
            batch: On the network's device.
        """


@final
@dataclass(frozen=True, eq=False)
class Answers(Objective):
    """Distillation (Hinton et al. 2015, arXiv:1503.02531): the metric between both networks.

    Args:
        teacher: The original.
        student: The quantized network.
        metric: How far outputs are apart.
    """

    teacher: nn.Module
    student: nn.Module
    metric: OutputMetric

    def loss(self, batch: Batch) -> Tensor:
        """See ``Objective``."""
        # Not kept from pass to pass: of a language model all of them are gigabytes.
        with torch.no_grad():
            wanted = self._outputs(self.teacher, batch)
        outputs = self._outputs(self.student, batch)
        check_same_shape(wanted, outputs)
        apart = self.metric.divergence(wanted, outputs)
        return (apart * position_weights(batch, outputs)).sum()

    def _outputs(self, module: nn.Module, batch: Batch) -> Tensor:
        return batch.as_examples(self.metric.positions(module(*batch.args, **batch.kwargs)))


@final
@dataclass(frozen=True, eq=False)
class BlockOutput(Objective):
    """Squared error of what a block gives, relative to what it gives in the original.

    Both networks run from the start to the block's end, the quantized one as it is tuned so far, as
    in the reconstruction of BRECQ (Li et al. 2021, arXiv:2102.05426), whose weights by squared
    gradients we leave out. Of a block that is called several times the first call counts.

    Args:
        teacher: The original.
        student: The quantized network.
        block: Name of the module, in both.
    """

    teacher: nn.Module
    student: nn.Module
    block: str

    def loss(self, batch: Batch) -> Tensor:
        """See ``Objective``."""
        with torch.no_grad():
            wanted = self._output(self.teacher, batch)
        found = self._output(self.student, batch)
        if wanted.shape != found.shape:
            raise ModelError(
                f"block {self.block!r} gives {tuple(found.shape)} in the quantized network and "
                f"{tuple(wanted.shape)} in the original: tune the whole network (blocks=false)"
            )
        error = (found.double() - wanted.double()).square().sum()
        size = wanted.double().square().sum().clamp_min(torch.finfo(torch.float64).tiny)
        return batch.size * error / size

    def _output(self, module: nn.Module, batch: Batch) -> Tensor:
        with _stopping(module.get_submodule(self.block)) as found:
            module(*batch.args, **batch.kwargs)
        return found[0]


class _Reached(Exception):  # noqa: N818 - no error
    """Ends a pass behind a block."""


@contextmanager
def _stopping(block: nn.Module) -> Iterator[list[Tensor]]:
    """Within this block a pass ends behind a module; its first tensor is in the list then."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        tensors = (
            x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()
        )
        found.append(next(tensors))
        raise _Reached

    with hooks([block.register_forward_hook(keep)]), suppress(_Reached):
        yield found
