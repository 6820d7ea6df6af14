"""Rotations: outliers of a stream are spread over all of its channels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
from torch import nn

from mpq.errors import InputError
from mpq.network.reparametrization import Doubles, Orthogonal, Untying
from mpq.network.reparametrized import reparametrized
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.learned_rotation import learned
from mpq.transforms.orthogonal import (
    around_mean,
    random_orthogonal,
    randomized_hadamard,
    reflection,
)
from mpq.transforms.rotations import Turn, Turns


@final
@dataclass(frozen=True)
class Rotate(Transform):
    r"""A space and all that reads it are turned by an orthogonal matrix: no channel stays large.

    .. math:: x \to x R, \quad W_\mathrm{writes} \to R^\top W_\mathrm{writes}, \quad
        W_\mathrm{reads} \to W_\mathrm{reads} \, \mathrm{diag}(g) \, R

    Spaces are the residual stream and the values of attention, by head (QuaRot, Ashkboos et al.
    2024, arXiv:2404.00456). The weight ``g`` of an RMSNorm, which would not commute, is folded into
    the layers that read behind it, and is 1 afterwards. LayerNorm's bias goes to the biases of
    those layers, and as it subtracts a mean, ``R`` keeps the vector of ones: SliceGPT (Ashkboos
    et al. 2024, arXiv:2401.15024) puts an RMSNorm in its place, which would be another graph.
    So would rotations inside the graph, such as QuaRot's before the down projection; they are
    not made. The matrix is a Hadamard matrix with random signs, or a random one where none is
    known.

    A head that is tied to the embedding would have to be both rotated alone and rotated with the
    last normalization's weight. It is refused where there is such a weight, unless it is untied.

    Args:
        untie: Whether a head that is tied to the embedding gets a weight of its own, which is
            stored beside the embedding's, and has a precision of its own.
        learned: Whether matrices are learned from there, see ``learned_rotation.learned``.
        steps: Of learning.
    """

    name: ClassVar[str] = "rotate"
    summary: ClassVar[str] = "outliers are spread over all channels of a stream: QuaRot, SpinQuant"

    untie: bool = False
    learned: bool = False
    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"{self.name} needs at least one step; got {self.steps}")

    def found(self, on: Transforming) -> Found:
        """See ``Transform.found``; takes a pass over two examples, and passes of each step."""
        module, untied, turns = self._turns(on)
        generator = np.random.default_rng(on.seed)
        matrices = [_random(turn, generator) for turn in turns.turns]
        if self.learned and turns.turns:
            matrices = self._learned(module, turns, matrices, on)
        rotated = zip(turns.turns, matrices, strict=True)
        changes = tuple(change for turn, by in rotated for change in turn.changes(by))
        before = (*untied, *turns.folded) if changes else ()
        return Found((*before, *changes), len(turns.turns), turns.why_not)

    def _learned(
        self, module: nn.Module, turns: Turns, start: list[Orthogonal], on: Transforming
    ) -> list[Orthogonal]:
        first = [
            _inner(by) if turn.keeps_mean else by.matrix
            for turn, by in zip(turns.turns, start, strict=True)
        ]
        found = learned(module, turns.folded, turns.turns, first, on, self.steps)
        return [
            was if now is before else Orthogonal(around_mean(now) if turn.keeps_mean else now)
            for turn, was, before, now in zip(turns.turns, start, first, found, strict=True)
        ]

    def _turns(self, on: Transforming) -> tuple[nn.Module, tuple[Untying, ...], Turns]:
        """The network as it is rotated, where an embedding was untied from its head, if asked."""
        turns = Turns.of(on.module, on.traced)
        tied = _further_names(on.module)
        if not tied:
            return on.module, (), turns
        untied = tuple(map(Untying, tied))
        module = reparametrized(on.module, untied)
        apart = Turns.of(module, on.traced)
        if apart.num_readers <= turns.num_readers:
            return on.module, (), turns
        if self.untie:
            return module, untied, apart
        why_not = {
            name: _told(tied) if name not in apart.why_not else why
            for name, why in turns.why_not.items()
        }
        return on.module, (), replace(turns, why_not=why_not)


def _further_names(module: nn.Module) -> dict[str, int]:
    """Other names of parameters that have several, and the bytes that each would take."""
    first = {id(p) for _, p in module.named_parameters()}
    names = dict(module.named_parameters())
    return {
        name: p.numel() * p.element_size()
        for name, p in module.named_parameters(remove_duplicate=False)
        if id(p) in first and name not in names
    }


def _told(tied: Mapping[str, int]) -> str:
    more = sum(tied.values())
    return (
        f"reads a stream that {next(iter(tied))} reads as well, which is tied to another layer: "
        f"rotate:untie=true gives it numbers of its own ({more} bytes more before rounding)"
    )


def _random(turn: Turn, generator: np.random.Generator) -> Orthogonal:
    if turn.keeps_mean:
        return Orthogonal(around_mean(random_orthogonal(turn.size - 1, generator)))
    return randomized_hadamard(turn.size, generator)


def _inner(by: Orthogonal) -> Doubles:
    """What ``around_mean`` was made of."""
    mirror = reflection(by.size)
    found: Doubles = (mirror @ by.matrix @ mirror)[1:, 1:]
    return found
