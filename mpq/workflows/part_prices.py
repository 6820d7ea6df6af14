"""What every part of a layer is priced at: by its channels alone, or in company of other layers."""

from collections.abc import Mapping
from typing import Final

import numpy as np

from mpq._support.arrays import Array, Columns
from mpq.problem.interactions import Interactions
from mpq.problem.parts import Parts
from mpq.problem.problem import Problem
from mpq.sensitivity import Sensitivity

LEAST_SHARE: Final = 0.05
"""Of what a layer loses alone: errors of other layers, which are kept as they are, take no more."""


def channel_losses(found: Sensitivity, owners: Mapping[str, str]) -> dict[str, Array]:
    """Layer name to ``[O, B]``; what shares a weight is priced with its owner."""
    losses = dict(found.channels)
    for name, owner in owners.items():
        if name in losses and owner in losses:
            losses[owner] = losses[owner] + losses.pop(name)
        else:  # one of them was measured as a whole
            losses.pop(owner, None)
    return losses


def by_channels(
    parts: Parts, losses: Mapping[str, Array], found: Sensitivity, problem: Problem
) -> Array:
    """``[R, B]`` whose sums over a layer are what the layer is priced at by its channels.

    Where no prices by channels are known they are scaled, so that the layer's own is their sum.

    Args:
        parts: The rows.
        losses: Layer name to ``[O, B]``, of its channels.
        found: The estimate.
        problem: That of whole layers.
    """
    if found.by_channels is None:
        return _scaled(parts, losses, problem.loss.values)
    rows = parts.spread(found.by_channels.values)
    for some, by_part in _by_part(parts, losses):
        # What is left is the input's.
        left = rows[some].sum(axis=0) - by_part.sum(axis=0)
        rows[some] = by_part + left * parts.shares[some, None]
    return rows


def in_company(
    parts: Parts,
    losses: Mapping[str, Array],
    problem: Problem,
    interactions: Interactions | None,
    columns: Columns,
) -> Array:
    """``[R, B]`` scaled, so that a layer's sum is what it loses beside the others' errors.

    A layer's own price is of its errors together; what they add to or take from those of the other
    layers, which have the precisions of an answer, is linear in them.

    Args:
        parts: The rows.
        losses: Layer name to ``[O, B]``, of its channels.
        problem: That of whole layers.
        interactions: Of whole layers; ``None``: their errors only add up.
        columns: ``[L]`` the answer.
    """
    values = problem.loss.values
    if interactions is not None:
        values = np.maximum(values + crossed(interactions, columns), LEAST_SHARE * values)
    return _scaled(parts, losses, values)


def crossed(interactions: Interactions, columns: Columns) -> Array:
    """``[L, B]`` what a layer at each precision loses together with the others at theirs."""
    factor = interactions.factor
    chosen = factor[:, np.arange(factor.shape[1]), columns]  # [S, L]
    others = chosen.sum(axis=1, keepdims=True, dtype=np.float64) - chosen
    together = np.einsum("slb,sl->lb", factor, others, dtype=np.float64)
    return np.asarray((1 - interactions.shrinkage) * together / len(factor))


def _scaled(parts: Parts, losses: Mapping[str, Array], values: Array) -> Array:
    """``[R, B]`` in the proportions of channels, whose sums over layers are ``values [L, B]``."""
    rows = parts.spread(values)
    for some, by_part in _by_part(parts, losses):
        whole, weights = rows[some].sum(axis=0), by_part.sum(axis=0)
        is_known = weights > 0
        scale = np.divide(whole, weights, out=np.ones_like(whole), where=is_known)
        # Channels without a price of their own share the layer's by their numbers.
        rows[some] = np.where(is_known, by_part * scale, rows[some])
    return rows


def _by_part(parts: Parts, losses: Mapping[str, Array]) -> list[tuple[slice, Array]]:
    """Of every divided layer its rows, and ``[P, B]`` the sums over each part's channels."""
    found = []
    for name, own in parts.divided.items():
        some = parts.rows_of(name)
        by_part = np.zeros((some.stop - some.start, losses[name].shape[1]))
        np.add.at(by_part, own.units, losses[name])
        found.append((some, by_part))
    return found
