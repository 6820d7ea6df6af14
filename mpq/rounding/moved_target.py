"""The weight that codes should be near in a network whose earlier layers are rounded already."""

from typing import Final

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.rounding.diagonal_blocks import blocks, diagonal

DAMPING: Final = 0.05
"""Share of the mean of the moment's diagonal that is added to it."""


def moved_target(
    rows: Tensor, moment: Tensor, crossed: Tensor, *, step: float = 1.0, damping: float = DAMPING
) -> Tensor:
    r"""The rows of a weight, moved to give the float network's outputs at the quantized inputs.

    .. math:: W' = W + \alpha W (C - H) (H + \lambda I)^{-1}, \quad
        H = E[x_q x_q^T], \quad C = E[x x_q^T]

    With :math:`\alpha = 1` and no damping this is :math:`W C H^{-1}`, the least squares solution of
    :math:`E |W x - W' x_q|^2`: what the inputs ``x_q`` of the quantized network say of the float
    outputs ``W x``. Codes ``Q`` lose as much in that objective as in
    :math:`(W' - Q) H (W' - Q)^T`, but for a constant, so that any rounding by a quadratic form can
    follow. Asymmetric calibration, as in GPTAQ (Li et al. 2025, arXiv:2504.02692); they change the
    update of GPTQ input by input, we the weight before any rounding.

    Solved in float64, which takes ``16 k^2`` bytes for one block of one group at a time.

    Args:
        rows: ``[O, K]``, in ``G`` consecutive groups of ``O / G`` rows.
        moment: ``[G, K, k]`` second moment ``H`` of the quantized network's inputs.
        crossed: ``[G, K, k]`` moment ``C``: float inputs by quantized inputs.
        step: Share of the way, :math:`\alpha`, from 0 to 1.
        damping: :math:`\lambda` as a share of the mean of ``H``'s diagonal, above 0. Inputs that
            are always 0 move nothing.

    Returns:
        ``[O, K]`` float32.

    Raises:
        InputError: If step or damping make no sense.
    """
    if not 0 <= step <= 1 or not damping > 0:
        raise InputError(
            f"a target is moved by a step from 0 to 1 with a damping above 0; got {step} and "
            f"{damping}"
        )
    groups = rows.unflatten(0, (len(moment), -1))  # [G, O / G, K]
    moved = [_moved(*each, step, damping) for each in zip(groups, moment, crossed, strict=True)]
    return torch.cat(moved)


def _moved(rows: Tensor, moment: Tensor, crossed: Tensor, step: float, damping: float) -> Tensor:
    mean = float(diagonal(moment).double().mean())
    if mean <= 0:  # only zeros are read
        return rows.float()
    pairs = zip(blocks(moment), blocks(crossed), strict=True)
    moved = [
        _moved_block(rows[:, part], block, other, step, damping * mean)
        for (part, block), (_, other) in pairs
    ]
    return torch.cat(moved, dim=1)


def _moved_block(
    rows: Tensor, moment: Tensor, crossed: Tensor, step: float, raised: float
) -> Tensor:
    form, rows = moment.double().clone(), rows.double()  # float64 may be the caller's
    change = rows @ (crossed.double() - form)  # [O, k]
    form.diagonal().add_(raised)
    # H is symmetric: what stands on its right is solved for on its left.
    moved: Tensor = rows + step * torch.linalg.solve(form, change.mT).mT
    return moved.float()
