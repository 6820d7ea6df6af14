"""What an error of each input of a weight loses, where those that follow make it good."""

import torch
from torch import Tensor

from mpq.rounding.gptq import Sequential
from mpq.rounding.objective import Objective


def column_losses(moment: Tensor, damping: float = 0.01) -> Tensor:
    r"""``[G, K]`` what a squared error of 1 in an input loses, in an order in which GPTQ rounds.

    .. math:: L = \sum_j \frac{e_j^2}{u_j^2}

    where ``e_j`` is the error that rounding input ``j`` makes at its turn, and ``u_j`` the diagonal
    of the upper Cholesky factor of the inverse second moment (Frantar et al. 2022,
    arXiv:2210.17323, in GPTQ's order). With steps :math:`\Delta_j` in place of errors,
    :math:`\Delta_j^2 / 12` in the mean, it is the closed form by which BAQ chooses bits of columns.
    In units of the mean of the moment's diagonal.

    Args:
        moment: ``[G, K, k]`` as ``WeightRounding.codes`` has it.
        damping: As in GPTQ.
    """
    found = []
    for own in moment:
        parts = Sequential.of(Objective.of(own, damping)).parts
        lengths = [torch.empty(len(each.order)).double() for _, each in parts]
        for into, (_, each) in zip(lengths, parts, strict=True):
            into[each.order] = each.upper.diagonal().double()
        found.append(torch.cat(lengths).square().reciprocal())
    return torch.stack(found)
