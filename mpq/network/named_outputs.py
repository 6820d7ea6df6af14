"""Several outputs of one network, each compared in its own way: detectors, spans, pairs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, Self, final

import torch
from torch import Tensor

from mpq._support.registry import Registry
from mpq.errors import InputError, ModelError
from mpq.network.metric import (
    CosineDistance,
    KLDivergence,
    OutputMetric,
    SquaredError,
)
from mpq.network.outputs import scored_tensor, tensor_outputs

_INNER: Final = re.compile(
    r"(^|\.)(past_key_values|hidden_states|attentions|cross_attentions|encoder_\w+|decoder_\w+|"
    r"vision_\w+|text_model\w*|\w*cache|cache_\w+|\w*states|loss|\w*_loss)(\.|$)"
)
"""What a model returns for its own use."""
_OF_TERMS: Final[Registry[OutputMetric]] = Registry(
    "metric",
    (KLDivergence, SquaredError, CosineDistance),
    group="mpq.metrics",
)


@final
@dataclass(frozen=True)
class Term:
    """One output, how it is compared, and what that counts.

    Args:
        path: Keys, attributes and indices, from the network's output on: ``pred_boxes``,
            ``0.boxes``.
        metric: How it is compared.
        weight: What its divergence is multiplied by in the sum.
    """

    path: str
    metric: OutputMetric
    weight: float = 1.0

    @classmethod
    def of(cls, text: str) -> Self:
        """From ``path``, ``path=metric``, ``path*weight`` or ``path=metric*weight``.

        Raises:
            InputError: If there is no path, or the weight is no positive number.
            UnknownNameError: If there is no such metric.
        """
        # The weight behind the last star, also of a path whose metric is left out.
        named, _, factor = text.partition("*")
        path, _, name = named.partition("=")
        default = "kl" if path.strip().endswith("logits") else "squared-error:relative=true"
        try:
            weight = float(factor or 1)
        except ValueError:
            weight = float("nan")
        if not path.strip() or not 0 < weight < float("inf"):
            raise InputError(
                f"an output is a path, its metric and a positive weight, boxes=squared-error*0.5; "
                f"got {text!r}"
            )
        return cls(path.strip(), _OF_TERMS.build(name.strip() or default), weight)

    def tensor(self, output: Any) -> Tensor:
        """That output.

        Raises:
            ModelError: If the network's output has no such path, or no tensor there.
        """
        found = output
        for step in self.path.split("."):
            found = _step(found, step)
        if not isinstance(found, Tensor):
            known = ", ".join(path for path, _ in tensor_outputs(output))
            raise ModelError(
                f"the network's output has no tensor at {self.path!r}; it has: {known or 'none'}"
            )
        return found


@final
@dataclass(frozen=True)
class NamedOutputs(OutputMetric):
    r"""A weighted sum over several outputs of the network.

    .. math:: D = \sum_i w_i \, \mathrm{mean}_p \, D_i(f_{ip}, f'_{ip})

    with the mean over the positions of each output. Curvature and probes are those of the terms;
    signs of different outputs are independent, so that their curvatures add up.

    Args:
        terms: Outputs, joined by ``+``: ``logits=kl+pred_boxes=squared-error:relative=true*5``.
            Without a metric, logits are compared by ``kl`` and all else by
            ``squared-error:relative=true``.

    Raises:
        InputError: If a term cannot be read, or there is none.
    """

    name: ClassVar[str] = "outputs"
    summary: ClassVar[str] = "a weighted sum over named outputs: terms=logits=kl+boxes=cosine*0.5"
    unit: ClassVar[str] = "weighted"

    terms: str = ""
    temperature: float = 1.0
    _shapes: dict[int, tuple[tuple[int, int], ...]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if not self.terms.strip():
            raise InputError(
                "the metric outputs needs terms: outputs:terms=logits=kl+pred_boxes=squared-error"
            )
        _ = self.parts

    @cached_property
    def parts(self) -> tuple[Term, ...]:
        """The terms, read."""
        return tuple(map(Term.of, self.terms.split("+")))

    def positions(self, output: Any) -> Tensor:
        """``[N, 1, W]``: the positions and channels of all terms, one behind the other.

        Raises:
            ModelError: If a term's output is missing, or its metric cannot read it.
        """
        found = [part.metric.positions(part.tensor(output)) for part in self.parts]
        if len({len(tensor) for tensor in found}) > 1:
            sizes = {part.path: len(t) for part, t in zip(self.parts, found, strict=True)}
            raise ModelError(f"outputs of unlike numbers of examples cannot be added up: {sizes}")
        flat = torch.cat([tensor.flatten(1).to(found[0].dtype) for tensor in found], dim=1)
        # Which numbers belong to which term is known again by how many there are.
        self._shapes[flat.shape[1]] = tuple((t.shape[1], t.shape[2]) for t in found)
        return flat[:, None]

    def _split(self, outputs: Tensor) -> Iterator[tuple[Term, Tensor]]:
        """Every term with its part, ``[N, P, C]``; rows that are one example stay rows here."""
        shapes = self._shapes[outputs.shape[2]]
        parts = outputs.flatten(0, 1).split([p * c for p, c in shapes], dim=1)
        for term, part, shape in zip(self.parts, parts, shapes, strict=True):
            yield term, part.unflatten(1, shape)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """See ``OutputMetric.divergence``."""
        rows = outputs.shape[:2]
        total = torch.zeros(rows.numel(), dtype=torch.float64, device=outputs.device)
        for (term, one), (_, other) in zip(
            self._split(reference), self._split(outputs), strict=True
        ):
            total = total + term.weight * self._metric(term).divergence(one, other).mean(dim=1)
        return total.reshape(rows)

    def softened(self, temperature: float) -> "NamedOutputs":
        """Where a term has probabilities, these."""
        found = NamedOutputs(self.terms, self.temperature * temperature)
        found._shapes.update(self._shapes)
        return found

    def _metric(self, term: Term) -> OutputMetric:
        return term.metric if self.temperature == 1 else term.metric.softened(self.temperature)

    def probe(self, outputs: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """See ``OutputMetric.probe``; each term's own."""
        drawn = []
        for term, part in self._split(outputs):
            each = weights.reshape(-1, 1).expand(-1, part.shape[1])
            share = each * (term.weight / part.shape[1])
            drawn.append(self._metric(term).probe(part, share, generator).flatten(1))
        return torch.cat(drawn, dim=1).reshape(outputs.shape).to(outputs.dtype)


def unscored(output: Any, metric: OutputMetric) -> tuple[str, ...]:
    """Paths of the tensors in an output that a metric does not look at.

    Without what a model keeps for itself or shows of its inside: caches, hidden states, attentions.
    """
    if isinstance(metric, NamedOutputs):
        seen = {id(part.tensor(output)) for part in metric.parts}
    else:
        seen = {id(scored_tensor(output))}
    found = (path for path, tensor in tensor_outputs(output) if id(tensor) not in seen)
    return tuple(path for path in found if not _INNER.search(path))


def _step(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step)
    if step.isdigit() and isinstance(value, tuple | list):
        return value[int(step)] if int(step) < len(value) else None
    return getattr(value, step, None)
