"""How far a quantized network's output is from the original's: the unit of every loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.network.divergence import (
    fisher_probe,
    kl_divergence,
    label_probe,
    random_signs,
)
from mpq.network.outputs import position_logits, position_values
from mpq.network.signs import Draws


class OutputMetric(ABC):
    """A distance between outputs, and the random directions whose mean is its curvature.

    A metric of another package is one class: a frozen dataclass that implements the four abstract
    methods, under an entry point of the group ``mpq.metrics``. What only classes have (logits,
    labels, accuracy) has defaults for outputs that are none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    unit: ClassVar[str]
    """What one of it is, such as ``nats``; any word of lower-case letters, digits and ``_``."""
    is_classification: ClassVar[bool] = False
    """Whether outputs are scores of classes, so that targets and accuracy mean something."""

    @abstractmethod
    def positions(self, output: Any) -> Tensor:
        """What a network returned, as ``[N, P, C]``: examples, positions, channels.

        Raises:
            ModelError: If the metric cannot read such an output.
        """

    @abstractmethod
    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """``[N, P]`` float64, at least 0, from the original's and the other's ``[N, P, C]``."""

    @abstractmethod
    def softened(self, temperature: float) -> "OutputMetric":
        """The metric with probabilities softened; itself where there are none."""

    @abstractmethod
    def probe(self, outputs: Tensor, weights: Tensor, generator: Draws) -> Tensor:
        """Random ``u`` with ``E[u u^T]`` the Hessian of the divergence at the original.

        Args:
            outputs: ``[N, P, C]`` of the original.
            weights: ``[N, P]`` share of every position in its example's mean.
            generator: Source of the signs, which ``mpq.network.divergence.random_signs`` takes.

        Returns:
            ``[N, P, C]``, detached, times the square root of the position's weight.
        """

    def logits(self, outputs: Tensor) -> Tensor:
        """Logits ``[N, P, C]`` of the classes, from outputs ``[N, P, C]``.

        Raises:
            InputError: If the metric knows no classes.
        """
        if not self.is_classification:
            raise InputError(f"labels are classes; the metric {self.name!r} has none")
        return outputs

    def label_gradient(
        self, outputs: Tensor, weights: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Gradient of a drawn label's likelihood; a ``probe`` where there are no such labels.

        Like ``probe``, also in its arguments, it has the curvature as its second moment. It is
        another random variable, though: that of the Fisher information's definition.
        """
        return self.probe(outputs, weights, generator)

    def fisher_probabilities(self, outputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """``p [N, P, C]``, float64, if the curvature is ``diag(p) - p p^T``, else ``None``.

        For such a curvature there are directions with less noise than random signs.
        """
        return None


@final
@dataclass(frozen=True)
class KLDivergence(OutputMetric):
    r"""KL divergence of the softmax in nats.

    .. math:: D = T^2 \, KL(\mathrm{softmax}(f / T) \,\|\, \mathrm{softmax}(f' / T))

    With a temperature above 1 an example that the network is sure of counts more; the square keeps
    the scale (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        temperature: ``T``; 1 is the plain divergence.
    """

    name: ClassVar[str] = "kl"
    summary: ClassVar[str] = "KL divergence of the softmax, per position (default)"
    unit: ClassVar[str] = "nats"
    is_classification: ClassVar[bool] = True

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"a temperature is positive; got {self.temperature}")

    def positions(self, output: Any) -> Tensor:
        """See ``mpq.network.outputs.position_logits``."""
        return position_logits(output)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See ``OutputMetric.divergence``."""
        t = self.temperature
        return t**2 * kl_divergence(reference, outputs, t)

    def softened(self, temperature: float) -> "KLDivergence":
        """See ``OutputMetric.softened``."""
        return KLDivergence(self.temperature * temperature)

    def probe(self, outputs: Tensor, weights: Tensor, generator: Draws) -> Tensor:
        """See ``mpq.network.divergence.fisher_probe``."""
        return fisher_probe(outputs, weights, generator, self.temperature)

    def logits(self, outputs: Tensor) -> Tensor:
        """Over the temperature: those of the softened softmax."""
        return outputs if self.temperature == 1 else outputs / self.temperature

    def label_gradient(
        self, outputs: Tensor, weights: Tensor, generator: torch.Generator
    ) -> Tensor:
        """See ``mpq.network.divergence.label_probe``."""
        return label_probe(self.logits(outputs), weights, None, generator)

    def fisher_probabilities(self, outputs: Tensor) -> Tensor:
        """The softmax: ``T^2`` of the divergence and ``1 / T^2`` of its curvature cancel."""
        return self.logits(outputs).double().softmax(dim=-1)


@final
@dataclass(frozen=True)
class SquaredError(OutputMetric):
    r"""Half the squared error summed over channels, for regression: its Hessian is the identity.

    .. math:: D = \tfrac12 \lVert f' - f \rVert^2, \quad \text{relative:} \quad
        D = \frac{\lVert f' - f \rVert^2}{2 \lVert f \rVert^2}, \;
        \nabla^2 D = \frac{1}{\lVert f \rVert^2} I

    Args:
        relative: Over the squared length of the original's output: without a unit, so that outputs
            of different scales (boxes, densities) can be added up.
    """

    name: ClassVar[str] = "squared-error"
    summary: ClassVar[str] = "half the squared error, for regression and dense prediction"

    relative: bool = False

    @property
    def unit(self) -> str:  # type: ignore[override]
        """See ``OutputMetric.unit``."""
        return "relative_squared_output" if self.relative else "squared_output"

    def positions(self, output: Any) -> Tensor:
        """See ``mpq.network.outputs.position_values``."""
        return position_values(output)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See ``OutputMetric.divergence``."""
        error = (outputs.double() - reference.double()).square().sum(dim=-1)
        return 0.5 * (error / _squared_length(reference) if self.relative else error)

    def softened(self, temperature: float) -> "SquaredError":  # noqa: ARG002
        """The same metric: there are no probabilities to soften."""
        return self

    def probe(self, outputs: Tensor, weights: Tensor, generator: Draws) -> Tensor:
        """Random signs, whose mean outer product is the identity; over the length if relative."""
        if self.relative:
            weights = weights / _squared_length(outputs.detach())
        signs = random_signs(outputs, generator)
        return (signs * weights.sqrt().unsqueeze(-1)).to(outputs.dtype)


def _squared_length(values: Tensor) -> Tensor:
    """``[N, P]`` float64, never 0: an output of zeros counts absolutely."""
    found = values.double().square().sum(dim=-1)
    return torch.where(found > 0, found, 1.0)


@final
@dataclass(frozen=True)
class CosineDistance(OutputMetric):
    r"""One minus the cosine, for embeddings: only the direction of an output matters.

    .. math:: D = 1 - \frac{f \cdot f'}{\lVert f \rVert \lVert f' \rVert}, \quad
        \nabla^2 D = \frac{1}{\lVert f \rVert^2} (I - \hat f \hat f^T)
    """

    name: ClassVar[str] = "cosine"
    summary: ClassVar[str] = "1 - cosine, for embeddings"
    unit: ClassVar[str] = "cosine_distance"

    def positions(self, output: Any) -> Tensor:
        """See ``mpq.network.outputs.position_values``."""
        return position_values(output)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See ``OutputMetric.divergence``; the halved distance of unit vectors, to keep digits."""
        # 1 - cos would cancel: of close outputs nearly all digits are those of the 1.
        apart = _direction(reference.double()) - _direction(outputs.double())
        return 0.5 * apart.square().sum(dim=-1)

    def softened(self, temperature: float) -> "CosineDistance":  # noqa: ARG002
        """The same metric: there are no probabilities to soften."""
        return self

    def probe(self, outputs: Tensor, weights: Tensor, generator: Draws) -> Tensor:
        """Random signs without their share along the output, over its length."""
        f = outputs.detach().double()
        signs, along = random_signs(outputs, generator), _direction(f)
        # The projection I - f f^T / |f|^2 is its own square, so that it is its own root as well.
        across = signs - along * (along * signs).sum(dim=-1, keepdim=True)
        length = torch.linalg.vector_norm(f, dim=-1, keepdim=True)
        # An output of zeros has no direction, hence no curvature; 0 / 0 would be nan.
        u = torch.where(length > 0, across / length, 0.0)
        return (u * weights.sqrt().unsqueeze(-1)).to(outputs.dtype)


def _direction(values: Tensor) -> Tensor:
    """Unit vectors; an output of zeros has no direction and stays as it is."""
    is_zero = (values == 0).all(dim=-1, keepdim=True)
    safe = torch.where(is_zero, 1.0, values)  # the length of zeros has no derivative
    return torch.where(is_zero, 0.0, safe / torch.linalg.vector_norm(safe, dim=-1, keepdim=True))


KL = KLDivergence()
