"""PyHessian's traces and eigenvalues, one layer at a time."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.errors import InputError, MissingDependencyError, ModelError
from mpq.network.examples import Batch
from mpq.network.network import Network
from mpq.sensitivity.curvature.block_traces import Traces
from mpq.sensitivity.curvature.hessian_products import Objective, own_weights, second_order
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.differentiation import translated

BACKENDS = ("mpq", "pyhessian")


def refuse_inputs(with_inputs: bool) -> None:
    """PyHessian knows parameters only.

    Raises:
        InputError: If inputs are to be priced.
    """
    if with_inputs:
        raise InputError(
            "backend='pyhessian' prices weights only; choose precisions that leave activations as "
            "they are (w4, not w4a8), or backend='mpq'"
        )


def pyhessian_traces(
    on: Estimation,
    loss: Objective,
    num_probes: int,
    generator: torch.Generator,
) -> Traces:
    """Traces of the weights' blocks in the Hessian, by ``pyhessian.hessian.trace``.

    A layer at a time: no noise from other layers, but ``L`` times as many products. A layer that
    the loss does not depend on, at which PyHessian fails, has a trace of 0.

    Args:
        on: A network in float32, on the CPU or the current CUDA device, and the examples.
        loss: Whose Hessian; see ``objective``.
        num_probes: ``K`` products for each layer.
        generator: Gives PyHessian's seed.

    Raises:
        MissingDependencyError: If the package is not installed.
        ModelError: If weights are not in float32, or on another device.
    """

    def trace(hessian: Any) -> list[float]:
        # Its own rule to stop ends at once where the running mean is negative: never stop.
        drawn: list[float] = hessian.trace(maxIter=num_probes, tol=float("-inf"))
        return drawn

    drawn = _every_layer(on, loss, generator, trace, num_probes)  # [L, K]
    unknown = np.full(len(drawn), float("nan"))
    error = drawn.std(axis=1, ddof=1) / num_probes**0.5 if num_probes > 1 else unknown
    nothing = np.zeros(len(drawn))
    return Traces(drawn.mean(axis=1), error, nothing, nothing, num_probes)


def pyhessian_eigenvalues(
    on: Estimation,
    loss: Objective,
    max_iterations: int,
    tolerance: float,
    generator: torch.Generator,
) -> Array:
    """``[L]`` eigenvalues of largest magnitude of the weights' blocks, by power iteration.

    Args:
        on: See ``pyhessian_traces``, also for errors.
        loss: Whose Hessian; see ``objective``.
        max_iterations: At most so many products for each layer.
        tolerance: Relative change of the eigenvalue at which the iteration ends.
        generator: Gives PyHessian's seed.
    """

    def top(hessian: Any) -> list[float]:
        values: list[float]
        values, _ = hessian.eigenvalues(maxIter=max_iterations, tol=tolerance, top_n=1)
        return values

    return _every_layer(on, loss, generator, top, 1)[:, 0]


def _every_layer(
    on: Estimation,
    loss: Objective,
    generator: torch.Generator,
    measure: Callable[[Any], list[float]],
    count: int,
) -> Array:
    """``[L, count]`` numbers, linear in the Hessian; 0 where the loss does not depend on a layer.

    A batch in which a layer is not used has a Hessian of 0 there, and PyHessian cannot take it.
    """
    pyhessian = _import()
    _check(on.network)
    reached, sizes = _reached(on, loss)
    found = np.zeros((len(on.names), count))
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with _seeded(seed), _as_pyhessian_needs(), torch.enable_grad():
        for row, name in enumerate(track(on.names, "PyHessian")):
            used = [name in names for names in reached]
            # PyHessian takes the mean over the batches that it is given; the others would add 0 to
            # it.
            share = sum(n for n, is_used in zip(sizes, used, strict=True) if is_used) / sum(sizes)
            if share > 0:
                with own_weights(on.network, [name]) as weights, translated():
                    hessian = pyhessian.hessian(
                        _OneWeight(on.network, weights[name]),
                        # PyHessian weights every batch by its size again, so that it is given
                        # means.
                        lambda outputs, item: loss(item.batch, outputs) / item.batch.size,
                        dataloader=_Batches(on, used),
                        cuda=on.network.device.type == "cuda",
                    )
                    found[row] = share * np.array(measure(hessian))
    return found


def _import() -> Any:
    try:
        return importlib.import_module("pyhessian")
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "backend='pyhessian' needs the package PyHessian: pip install 'mpq[pyhessian]'"
        ) from None


def _check(network: Network) -> None:
    # PyHessian makes its vectors in torch's default dtype, and knows no devices but these two.
    kinds = {network.weight(layer.name).dtype for layer in network.layers}
    if kinds != {torch.float32} or network.device.type not in ("cpu", "cuda"):
        raise ModelError(
            "backend='pyhessian' works with float32 weights on the CPU or a CUDA device; got "
            f"{', '.join(sorted(map(str, kinds)))} on {network.device.type} (use backend='mpq')"
        )


def _reached(on: Estimation, loss: Objective) -> tuple[list[frozenset[str]], list[int]]:
    """Of every batch, the layers whose weight the loss depends on, and the number of examples."""
    reached, sizes = [], []
    for batch in on.network.batches(on.data):
        with second_order(on.network, batch, loss, with_inputs=False) as found:
            reached.append(frozenset(found.weights))
        sizes.append(batch.size)
    return reached, sizes


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyHessian draws from the global random state, which is put back."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _as_pyhessian_needs() -> Iterator[None]:
    """It accumulates differentiable gradients, and releases them; attention by plain kernels."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", "Using backward.* with create_graph=True")
        yield


class _OneWeight(nn.Module):
    """The network as a module whose only parameter is one layer's weight."""

    def __init__(self, network: Network, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        # A Network is no Module, so that its parameters are not registered beside the one.
        self._network = network
        self.eval()

    def forward(self, item: "_Item") -> Tensor:
        return self._network.outputs(item.batch)


@final
@dataclass(frozen=True, eq=False)
class _Item:
    """A batch that answers what PyHessian asks tensors for."""

    batch: Batch

    def size(self, _: int) -> int:
        """Examples."""
        return self.batch.size

    def to(self, _: str) -> "_Item":
        """It is there already."""
        return self


@final
@dataclass(frozen=True, eq=False)
class _Batches:
    """The batches that a layer is used in, as pairs of inputs and targets."""

    on: Estimation
    used: list[bool]

    def __iter__(self) -> Iterator[tuple[_Item, _Item]]:
        batches = self.on.network.batches(self.on.data)
        for batch, is_used in zip(batches, self.used, strict=True):
            if is_used:
                # The loss finds targets in the batch, so that one item serves as inputs and as
                # targets.
                yield _Item(batch), _Item(batch)
