"""The interface of every sensitivity estimator."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from mpq.errors import ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer


@final
@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What an estimator found.

    Args:
        table: ``[L, B]`` loss of every layer at every precision, alone.
        interactions: How errors of different layers add up, where the estimator knows.
        standard_error: ``[L, B]`` of the table, where the estimator draws and knows it.
    """

    table: CostTable
    interactions: Interactions | None = None
    standard_error: CostTable | None = None


class SensitivityEstimator(ABC):
    """Predicts what a precision costs a layer: model and data in, ``[L, B]`` out.

    The network is left as found: weights, gradients, mode, hooks, requires_grad; so is the global
    random state. Seeds are fields.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def estimate(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        candidates: Sequence[Precision],
    ) -> Sensitivity:
        """The loss of every layer at every choice.

        Args:
            network: ``L`` layers.
            data: Calibration examples; targets are not used.
            quantizer: How weights and inputs are put into a format.
            candidates: ``B`` precisions.

        Returns:
            ``[L, B]`` in the unit of the network's metric (nats of KL divergence) per example,
            unless the estimator says otherwise.

        Raises:
            ModelError: If the estimate is not finite, or the network's output has no logits.
        """


class RefinableEstimator(SensitivityEstimator):
    """An estimator that can look again from where a solver got to."""

    @abstractmethod
    def estimate_at(
        self,
        network: Network,
        data: Calibration,
        quantizer: Quantizer,
        candidates: Sequence[Precision],
        incumbent: Mapping[str, Precision],
    ) -> Sensitivity:
        """The loss of every layer at every choice, near an assignment.

        Args:
            network: ``L`` layers.
            data: Calibration examples.
            quantizer: How weights and inputs are put into a format.
            candidates: ``B`` precisions.
            incumbent: Layer name to precision; layers that are missing are not quantized.

        Returns:
            A table and interactions whose loss of the incumbent is the loss it has to second order
            in the change of the outputs; cells of the table may be negative.
        """


def loss_table(
    network: Network,
    candidates: Sequence[Precision],
    values: npt.NDArray[np.floating],
    name: str,
    unit: str | None = None,
) -> CostTable:
    """The estimate as a table, in the unit of the network's metric unless it has another one.

    Raises:
        ModelError: If a value is not finite.
    """
    if not np.isfinite(values).all():
        layer, candidate = (int(i[0]) for i in np.nonzero(~np.isfinite(values)))
        raise ModelError(
            f"{name}: layer {network.layers[layer].name!r} at {candidates[candidate]} costs "
            f"{values[layer, candidate]}; gradients or outputs of the network overflow there"
        )
    names = tuple(layer.name for layer in network.layers)
    return CostTable(
        name,
        unit or network.metric.unit,
        names,
        tuple(candidates),
        np.asarray(values, dtype=np.float64),
    )
