"""Inputs whose statistics are those that the network's BatchNorm layers remember."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpq._support.progress import track
from mpq.errors import InputError, ModelError
from mpq.network.examples import Calibration
from mpq.network.modules import check_model, device_of, hooks, share_parameters
from mpq.network.synthetic._base import (
    DataSource,
    batch_sizes,
    check_images,
    check_positive,
    dtype_of,
    parse_shape,
)

_STALLED = 0.02
"""A batch that keeps more than this share of the noise's distance is begun anew: where it ends well
it keeps less than 1e-5, in a local minimum about a tenth."""
_MAX_RESTARTS = 2
"""A network whose statistics no batch can have would otherwise be tried for ever."""
_EPSILON = 1e-6
"""Added to variances, as in the published code: a root has no gradient at 0."""


@final
@dataclass(frozen=True)
class DistilledInputs(DataSource):
    r"""Inputs that are optimised until BatchNorm sees what it saw in training.

    .. math:: \min_x \sum_{i=0}^{L} \lVert \tilde\mu_i(x) - \mu_i \rVert^2
        + \lVert \tilde\sigma_i(x) - \sigma_i \rVert^2

    for the mean and standard deviation per channel of a batch before the ``i``-th BatchNorm, and
    those that it remembers; ``i = 0`` is the input itself, with mean 0 and deviation 1. From
    standard normal numbers, by Adam, whose rate falls tenfold when the sum stops falling. A batch
    that stays in a local minimum is begun anew, at most twice, and the best is kept.

    Reference: Cai et al. (2020), ZeroQ, arXiv:2001.00281, on distilled data, whose formula,
    optimiser, rate and number of steps these are. The published code takes the statistics of every
    image alone, which makes images alike; here they are those of the batch, as BatchNorm's are.

    Args:
        shape: Shape of one example, such as ``3x32x32``.
        num_examples: How many examples are made, over all batches.
        batch_size: Examples whose statistics are matched together; the more, the better.
        steps: Steps of the optimiser, each a forward and a backward pass over the batch.
        learning_rate: Step size of the optimiser, in the inputs' unit.
        seed: Seed of the numbers that the inputs start from.
    """

    name: ClassVar[str] = "batch-norm"
    summary: ClassVar[str] = "ZeroQ: inputs distilled from the statistics of BatchNorm"

    shape: str = "3x32x32"
    num_examples: int = 64
    batch_size: int = 32
    steps: int = 500
    learning_rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(
            self.name,
            num_examples=self.num_examples,
            batch_size=self.batch_size,
            steps=self.steps,
            learning_rate=self.learning_rate,
        )
        check_images(self.name, self.num_examples, self.shape)
        parse_shape(self.name, self.shape)

    def calibration(self, model: nn.Module) -> Calibration:
        """See ``DataSource.calibration``.

        Raises:
            ModelError: If the model has no BatchNorm with running statistics, or calls none.
            InputError: If the network does not take inputs of this shape.
        """
        check_model(model)
        generator = torch.Generator().manual_seed(self.seed)
        shape = parse_shape(self.name, self.shape)
        statistics = RememberedStatistics(share_parameters(model))
        sizes = list(batch_sizes(self.num_examples, self.batch_size))
        # All drawn before any is distilled: a restart must not change the next batches' starts.
        starts = [torch.randn(size, *shape, generator=generator) for size in sizes]
        return Calibration(
            [
                self._best(statistics, start, generator).to("cpu", statistics.dtype)
                for start in track(starts, "distilling")
            ]
        )

    def _best(
        self, statistics: "RememberedStatistics", start: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The batch that comes closest, begun anew while it stalls far from the statistics."""
        before = self._before(statistics, start)
        # All tries are kept, as the last one need not be the best.
        found: list[tuple[float, Tensor]] = []
        for _ in range(1 + _MAX_RESTARTS):
            x = self._distil(statistics, start)
            with torch.no_grad():
                found.append((float(statistics.distance(x)), x))
            if found[-1][0] <= _STALLED * before:
                break
            start = torch.randn(start.shape, generator=generator)
        return min(found, key=lambda pair: pair[0])[1]

    def _before(self, statistics: "RememberedStatistics", start: Tensor) -> float:
        """How far the noise is; the first time that the network is given an input of this shape."""
        try:
            with torch.no_grad():
                return float(statistics.distance(start.to(device_of(statistics.module))))
        except InputError:
            raise
        # What torch raises where a shape fits no layer.
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"{self.name}: shape={self.shape} does not fit the network, which says: {error}"
            ) from error

    def _distil(self, statistics: "RememberedStatistics", start: Tensor) -> Tensor:
        x = start.to(device_of(statistics.module)).requires_grad_()
        optimizer = torch.optim.Adam([x], self.learning_rate)
        # Patience and lowest rate are those of the published code.
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=100, min_lr=1e-4)
        for _ in range(self.steps):
            # Callers may be within `no_grad`.
            with torch.enable_grad():
                loss = statistics.distance(x)
            # Assigned anew, while `backward` would add to the last step's.
            (x.grad,) = torch.autograd.grad(loss, x)
            optimizer.step()
            schedule.step(float(loss.detach()))
        return x.detach()


@final
class RememberedStatistics:
    """What the BatchNorm layers of a network remember.

    Args:
        module: In evaluation mode, without parameters that require gradients.

    Raises:
        ModelError: If it has no BatchNorm with running statistics.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.dtype = dtype_of(module)
        self._norms = [
            norm
            for norm in module.modules()
            # With track_running_stats=False there is nothing to match.
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None
        ]
        if not self._norms:
            raise ModelError(
                "the model has no BatchNorm with running statistics to distil inputs from; give "
                "data, or another source of examples"
            )

    def distance(self, x: Tensor) -> Tensor:
        """How far a batch's statistics are from them, and its own from 0 and 1.

        A layer that is called twice counts twice.

        Args:
            x: A batch of inputs, ``[N, C, ...]``, float32.

        Raises:
            ModelError: If no BatchNorm is called.
        """
        terms: list[Tensor] = []
        # Before each BatchNorm, as it remembers the statistics of its input.
        handles = [norm.register_forward_pre_hook(partial(_compare, terms)) for norm in self._norms]
        with hooks(handles):
            self.module(x.to(self.dtype))
        if not terms:
            raise ModelError("the model calls none of its BatchNorm layers for such an input")
        mean, variance = x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])
        terms.append(distance(x, mean, variance))
        # A network may be spread over several devices.
        return torch.stack([term.to(x.device) for term in terms]).sum()


def _compare(terms: list[Tensor], norm: _BatchNorm, args: tuple[Any, ...]) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    terms.append(distance(args[0], norm.running_mean, norm.running_var))


def distance(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    r"""Squared distance of means and of standard deviations, summed over channels.

    Args:
        x: What a BatchNorm reads, ``[N, C, ...]``.
        mean: Remembered mean of every channel, ``[C]``.
        variance: Remembered variance of every channel, ``[C]``.
    """
    # In float32, as squares of half-precision numbers may overflow.
    by_channel = x.float().transpose(0, 1).flatten(1)  # [C, M]
    deviation = (by_channel.var(1, correction=0) + _EPSILON).sqrt()
    remembered = (variance.float() + _EPSILON).sqrt()
    return (by_channel.mean(1) - mean).square().sum() + (deviation - remembered).square().sum()
