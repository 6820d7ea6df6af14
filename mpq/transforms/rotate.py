"""Rotations: outliers of a stream are spread over all of its channels."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from mpq.network.reparametrization import Orthogonal
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.orthogonal import around_mean, random_orthogonal, randomized_hadamard
from mpq.transforms.rotations import Turn, Turns


@final
@dataclass(frozen=True)
class Rotate(Transform):
    r"""A space and all that reads it are turned by an orthogonal matrix, so that no channel is large.

    .. math:: x \to x R, \quad W_\mathrm{writes} \to R^\top W_\mathrm{writes}, \quad
        W_\mathrm{reads} \to W_\mathrm{reads} \, \mathrm{diag}(g) \, R

    Spaces are the residual stream and the values of attention, by head (QuaRot, Ashkboos et al.
    2024, arXiv:2404.00456). The weight ``g`` of an RMSNorm, which would not commute, is folded into
    the layers that read behind it, and is 1 afterwards. LayerNorm's bias goes to the biases of
    those layers, and as it subtracts a mean, ``R`` keeps the vector of ones: SliceGPT (Ashkboos et
    al. 2024, arXiv:2401.15024) puts an RMSNorm in its place, which would be another graph. Rotations
    inside the graph, such as QuaRot's before the down projection, would be as well, and are not
    made. The matrix is a Hadamard matrix with random signs, or a random one where none is known.
    """

    name: ClassVar[str] = "rotate"
    summary: ClassVar[str] = "outliers are spread over all channels of a stream: QuaRot, SpinQuant"

    def found(self, on: Transforming) -> Found:
        """See ``Transform.found``; takes a pass over two examples."""
        turns = Turns.of(on.module, on.traced)
        generator = np.random.default_rng(on.seed)
        matrices = [_random(turn, generator) for turn in turns.turns]
        rotated = zip(turns.turns, matrices, strict=True)
        changes = tuple(change for turn, by in rotated for change in turn.changes(by))
        folded = turns.folded if changes else ()
        return Found((*folded, *changes), len(turns.turns), turns.why_not)


def _random(turn: Turn, generator: np.random.Generator) -> Orthogonal:
    if turn.keeps_mean:
        return Orthogonal(around_mean(random_orthogonal(turn.size - 1, generator)))
    return randomized_hadamard(turn.size, generator)
