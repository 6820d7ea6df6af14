"""Several outputs of one network, each compared in its own way: detectors, spans, pairs."""

import re
from collections.abc import Iterator
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
from mpq.network.output_paths import (
    EVERY,
    found_at,
    paths_of,
    shown_paths,
    tensor_outputs,
)
from mpq.network.outputs import scored_tensor
from mpq.network.signs import Draws

_INNER: Final = re.compile(
    r"(^|\.)(past_key_values|hidden_states|attentions|cross_attentions|encoder_\w+|decoder_\w+|"
    r"vision_\w+|text_model\w*|\w*cache|cache_\w+|\w*states|loss|\w*_loss)(\.|$)"
)
"""What a model returns for its own use."""
_BEFORE_WEIGHT: Final = re.compile(r"(?<=[^.])\*")
"""Not at the beginning and not behind a dot, where a star is a step: ``*.boxes*5``."""
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
            ``0.boxes``; ``*.boxes`` over all images of a list.
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
        # A star that is no step of the path stands before the weight.
        named, *factors = _BEFORE_WEIGHT.split(text, maxsplit=1)
        factor = factors[0] if factors else ""
        path, _, name = named.partition("=")
        default = "kl" if path.strip().endswith("logits") else "squared-error:relative=true"
        try:
            weight = float(factor or 1)
        except ValueError:
            weight = float("nan")
        steps = path.strip().split(".")
        if not path.strip() or not 0 < weight < float("inf") or steps.count(EVERY) > 1:
            raise InputError(
                "an output is a path, its metric and a positive weight, boxes=squared-error*0.5 "
                f"(at most one step is *, all images of a list: *.boxes); got {text!r}"
            )
        return cls(path.strip(), _OF_TERMS.build(name.strip() or default), weight)

    def tensor(self, output: Any) -> Tensor:
        """That output; over all images ``[N, ...]``.

        Raises:
            ModelError: If the network's output has no such path, no floating-point tensor there,
                or images have outputs of unlike shapes.
        """
        parts = self.parts(output)
        return _stacked(self.path, parts) if EVERY in self.path.split(".") else parts[0]

    def parts(self, output: Any) -> list[Tensor]:
        """That output, of all images one by one.

        Raises:
            ModelError: If there is no such floating-point tensor.
        """
        found = found_at(output, self.path)
        parts = found if EVERY in self.path.split(".") else [found]
        tensors = [x for x in parts or () if isinstance(x, Tensor) and x.is_floating_point()]
        if not tensors or len(tensors) < len(parts):
            what = "no tensor" if not tensors and found is None else "no floating-point tensor"
            raise ModelError(
                f"the network's output has {what} at {self.path!r}; it has: "
                f"{shown_paths(paths_of(output)) or 'none'}"
            )
        return tensors


def _stacked(path: str, parts: list[Tensor]) -> Tensor:
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        told = ", ".join(map(str, sorted(shapes)[:4]))
        raise ModelError(
            f"the outputs at {path!r} have other shapes for other images ({told}): how many there "
            "are depends on what is found. Compare an output from before that choice (raw scores "
            "and boxes of all places), or wrap the network in a module that returns it"
        )
    if not parts[0].numel():
        raise ModelError(
            f"the outputs at {path!r} are empty for all images of a batch: nothing is found that "
            "could be compared. Compare an output from before that choice, or give other images"
        )
    return torch.stack(parts)


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
        found = [_positions(part, output) for part in self.parts]
        if len({len(tensor) for tensor in found}) > 1:
            sizes = {part.path: len(t) for part, t in zip(self.parts, found, strict=True)}
            raise ModelError(f"outputs of unlike numbers of examples cannot be added up: {sizes}")
        flat = torch.cat([tensor.flatten(1).to(found[0].dtype) for tensor in found], dim=1)
        # Which numbers belong to which term is known again by how many there are.
        shapes = tuple((t.shape[1], t.shape[2]) for t in found)
        if self._shapes.setdefault(flat.shape[1], shapes) != shapes:
            raise ModelError(
                f"the outputs {', '.join(part.path for part in self.parts)} have as many numbers "
                f"as before in other shapes: {self._shapes[flat.shape[1]]} and {shapes}; give "
                "batches of one shape"
            )
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
        # The very same dict: outputs of another length may be seen after this was made.
        object.__setattr__(found, "_shapes", self._shapes)
        return found

    def _metric(self, term: Term) -> OutputMetric:
        return term.metric if self.temperature == 1 else term.metric.softened(self.temperature)

    def probe(self, outputs: Tensor, weights: Tensor, generator: Draws) -> Tensor:
        """See ``OutputMetric.probe``; each term's own."""
        drawn = []
        for term, part in self._split(outputs):
            each = weights.reshape(-1, 1).expand(-1, part.shape[1])
            share = each * (term.weight / part.shape[1])
            drawn.append(self._metric(term).probe(part, share, generator).flatten(1))
        return torch.cat(drawn, dim=1).reshape(outputs.shape).to(outputs.dtype)


def _positions(part: Term, output: Any) -> Tensor:
    tensor = part.tensor(output)
    try:
        return part.metric.positions(tensor)
    except ModelError as error:
        raise ModelError(f"the output at {part.path!r}: {error}") from error


def output_names(metric: OutputMetric) -> list[str]:
    """Names of what ``scored_tensors`` gives."""
    if not isinstance(metric, NamedOutputs):
        return ["output"]
    return [part.path for part in metric.parts]


def scored_tensors(output: Any, metric: OutputMetric) -> dict[str, Tensor]:
    """What a metric reads of a network's output, by path; of a plain metric ``output``.

    Raises:
        ModelError: If it is not there.
    """
    if not isinstance(metric, NamedOutputs):
        return {"output": scored_tensor(output)}
    return {part.path: part.tensor(output) for part in metric.parts}


def compared_tensors(output: Any, metric: OutputMetric) -> dict[str, Tensor]:
    """What a metric reads of a network's output, and behind it what it does not look at, by path.

    Without lists of images whose outputs have unlike shapes.

    Raises:
        ModelError: If what the metric reads is not there.
    """
    scored = scored_tensors(output, metric)
    found = dict(scored)
    for path in unscored(output, metric):
        value = found_at(output, path)
        parts = value if isinstance(value, list) else [value]
        if len({tuple(x.shape) for x in parts}) == 1:
            name = f"{path} (unscored)" if path in scored else path
            found[name] = torch.stack(parts) if EVERY in path.split(".") else parts[0]
    return found


def unscored(output: Any, metric: OutputMetric) -> tuple[str, ...]:
    """Paths of the tensors in an output that a metric does not look at.

    Without what a model keeps for itself or shows of its inside: caches, hidden states, attentions.
    """
    if isinstance(metric, NamedOutputs):
        seen = {id(x) for part in metric.parts for x in part.parts(output)}
    else:
        seen = {id(scored_tensor(output))}
    others = [path for path, tensor in tensor_outputs(output) if id(tensor) not in seen]
    found = (path for path in others if not _INNER.search(path))
    # Of lists of dicts one path over all images, if none of these is looked at.
    shown = dict.fromkeys(paths_of(output))
    left = list(found)
    for path in (p for p in shown if EVERY in p.split(".")):
        every = [p for p, _ in tensor_outputs(output) if _is_of(p, path)]
        if set(every) <= set(left):
            at = left.index(every[0])
            left = [path if i == at else p for i, p in enumerate(left) if i == at or p not in every]
    return tuple(left)


def _is_of(path: str, pattern: str) -> bool:
    steps, wanted = path.split("."), pattern.split(".")
    return len(steps) == len(wanted) and all(
        step == want or (want == EVERY and step.isdigit())
        for step, want in zip(steps, wanted, strict=True)
    )
