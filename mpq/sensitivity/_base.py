"""The interface of every sensitivity estimator."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from mpq._support.arrays import Array
from mpq._support.bounds import Bounded
from mpq.problem.cost_table import CostTable
from mpq.problem.interactions import Interactions
from mpq.quantization.precision import Precision
from mpq.sensitivity.checked import SpotCheck
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.step_shares import StepShares


@final
@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What an estimator found.

    Args:
        table: ``[L, B]`` loss of every layer at every precision, alone.
        interactions: How errors of different layers add up, where the estimator knows.
        standard_error: ``[L, B]`` of the table, where the estimator draws and knows it.
        check: What measuring a few cells said, where the estimator checks itself.
        by_channels: ``[L, B]`` other prices of weights that were rounded to fit data, in which
            errors of different channels neither add up nor cancel; see ``best_answer``.
        channels: Layer name to ``[O, B]``, what rounding each output channel's weights loses by
            itself, or ``[U, B]`` of other parts (``Estimation.units``), where the estimator knows;
            of layers whose row is by another estimate, nothing.
        steps: Which steps of a diffusion the prices come from, where the estimator knows.
    """

    table: CostTable
    interactions: Interactions | None = None
    standard_error: CostTable | None = None
    check: SpotCheck | None = None
    by_channels: CostTable | None = None
    channels: Mapping[str, Array] = field(default_factory=dict)
    steps: StepShares | None = None


class SensitivityEstimator(Bounded, ABC):
    """Predicts what a precision costs a layer: model and data in, ``[L, B]`` out.

    The network is left as found: weights, gradients, mode, hooks, requires_grad; so is the global
    random state. Seeds are fields.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    is_measuring: ClassVar[bool] = False
    """Whether every cell is measured by itself, so that nothing is left to check."""
    prices_channels: ClassVar[bool] = False
    """Whether it knows what every output channel loses (``Sensitivity.channels``)."""
    asks_workers: ClassVar[bool] = False
    """Whether it can have cells measured by other processes (``Estimation.workers``)."""
    prices_caches: ClassVar[bool] = False
    """Whether it prices layers without weights, which key-value caches and operands are."""

    @property
    def asks_score(self) -> bool:
        """Whether it asks the task's own score of networks."""
        return False

    def num_scored(self, names: Sequence[str]) -> int:
        """Of how many of these layers it asks that: a call for each precision."""
        return len(names) if self.asks_score else 0

    def for_examples(self, num_examples: int) -> "SensitivityEstimator":  # noqa: ARG002
        """The estimator as it works on so many examples, however few it is shown."""
        return self

    @abstractmethod
    def estimate(self, on: Estimation) -> Sensitivity:
        """The loss of every layer at every candidate.

        Args:
            on: Network, calibration examples, quantizer and candidates.

        Returns:
            ``[L, B]`` in the unit of the network's metric (nats of KL divergence) per example,
            unless the estimator says otherwise.

        Raises:
            ModelError: If the estimate is not finite, or the network's output has no logits.
        """


class DivisibleEstimator(SensitivityEstimator):
    """An estimator that adds up over batches, so that several processes can take some each."""

    @abstractmethod
    def collect(self, on: Estimation) -> None:
        """Looks at the batches that ``on.division`` leaves, which keeps what is found.

        ``estimate`` does the same, and makes a table of it.

        Raises:
            InputError: If options make a batch depend on those before it.
        """


class RefinableEstimator(SensitivityEstimator):
    """An estimator that can look again from where a solver got to."""

    @abstractmethod
    def estimate_at(self, on: Estimation, incumbent: Mapping[str, Precision]) -> Sensitivity:
        """The loss of every layer at every candidate, near an assignment.

        Args:
            on: Network, calibration examples, quantizer and candidates.
            incumbent: Layer name to precision; layers that are missing are not quantized.

        Returns:
            A table and interactions whose loss of the incumbent is the loss it has to second order
            in the change of the outputs; cells of the table may be negative.
        """
