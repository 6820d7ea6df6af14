"""Orthogonality: layers whose outputs tell examples apart like no other layer's are important."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.network.examples import Batch
from mpq.network.network import Network
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.importance import importance_table
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.forward_pass import read_batch
from mpq.sensitivity.passes.one_device import on_one_device


@final
@dataclass(frozen=True)
class Orthogonality(SensitivityEstimator):
    r"""Relative rounding error, times how orthogonal the layer's output is to the others'.

    .. math:: \iota_i = e^{-\beta \gamma_i}, \quad \gamma_i = \sum_{j \ne i} \mathrm{ORM}_{ij},
        \quad \mathrm{ORM}_{ij} = \frac{\lVert Y_j^T Y_i \rVert_F^2}
        {\lVert Y_i^T Y_i \rVert_F \lVert Y_j^T Y_j \rVert_F}
        = \frac{\langle G_i, G_j \rangle}{\lVert G_i \rVert_F \lVert G_j \rVert_F}

    for the outputs :math:`Y_i [N, F_i]` of layer ``i``, one row per example, and their Gram
    matrices :math:`G = Y Y^T [N, N]`. OMPQ (Ma et al. 2021, arXiv:2109.07865), which takes one
    batch and maximises importance times bits. Departs from it in making a table (see
    ``importance_table``), and in reading any number of batches: what examples of different batches
    have in common is left out of ``G``, so that memory does not grow and the table depends on how
    examples are split into batches. The batch should have more
    than a few examples; with one, all layers look alike. The unit is ``relative``.

    Args:
        beta: How fast importance falls, at least 0.
        centered: Whether the mean over the batch's examples is taken out of ``Y`` first, as in the
            authors' code (then ``ORM`` is linear CKA); the paper does not.

    Raises:
        InputError: If ``beta`` is negative.
    """

    name: ClassVar[str] = "orthogonality"
    summary: ClassVar[str] = "rounding error x orthogonality of layer outputs (OMPQ), forward only"

    beta: float = 1.0
    centered: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.beta < float("inf"):
            raise InputError(f"orthogonality needs beta >= 0; got {self.beta}")

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``."""
        orm = orthogonality_matrix(on, self.centered)
        # The sum is over the other layers: a layer's likeness to itself, 1, is taken out again.
        gamma = orm.sum(axis=1) - orm.diagonal()
        importance = np.exp(-self.beta * gamma)
        return Sensitivity(importance_table(on, importance, self.name))


def orthogonality_matrix(on: Estimation, centered: bool = False) -> Any:
    """``ORM [L, L]``, from 0 (orthogonal) to 1; 0 where an output is 0."""
    products = np.zeros((len(on.names), len(on.names)))
    for batch in on.batches("orthogonality"):
        grams = _grams(on.network, batch, centered).flatten(1)  # [L, N * N]
        products += (grams @ grams.T).numpy()
    norms = np.sqrt(products.diagonal())
    scale = np.outer(norms, norms)
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)


def _grams(network: Network, batch: Batch, centered: bool) -> Tensor:
    """``[L, N, N]`` Gram matrices of the layers' outputs, summed over their calls."""
    shape = (batch.size, batch.size)
    # On each layer's device, so that no pass waits for a transfer.
    found = {
        layer.name: network.weight(layer.name).new_zeros(shape, dtype=torch.float32)
        for layer in network.layers
    }

    def read(tap: Tap, _: Tensor, y: Tensor) -> None:
        # Calls are further features of the same examples, and Gram matrices of features add up.
        found[tap.name] = found[tap.name] + _gram(tap, y.float(), centered)

    read_batch(network, batch, read)
    # What follows has the fourth power of the outputs, which float32 is soon too narrow for.
    return on_one_device(found.values()).cpu().double()


def _gram(tap: Tap, y: Tensor, centered: bool) -> Tensor:
    """``[N, N]`` inner products of the examples' outputs."""
    split = tap.by_example(y)
    if split is None:  # all examples have the same share in it
        split = y.flatten().expand(tap.num_examples, -1) / tap.num_examples**0.5
    rows = split.flatten(1)
    rows = rows - rows.mean(dim=0) if centered else rows
    return rows @ rows.T
