"""Which weights a sparse branch keeps where a rule says so, as publications have them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mpq.errors import InputError
from mpq.quantization.codes import Codes
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.grid import Grid
from mpq.quantization.side_branch import Sparse
from mpq.quantization.tensor_format import Granularity


def places_by_rule(rows: Tensor, branch: Sparse, form: ErrorForm, plain: Codes) -> Tensor:
    r"""``[O, K]`` bool, the largest of the whole weight by each rule, less those that are taken.

    .. math:: m: |w_{rk}|, \qquad g: F_{rk}, \qquad
        e: (w_{rk} - Q(w_{rk}))^2 / [H_r^{-1}]_{kk}

    with ``H_r`` the form, ``F`` its diagonal where every number has its own, and ``Q`` to nearest
    on the plain format's grid. SqueezeLLM (Kim et al. 2023, arXiv:2306.07629) keeps .05 % by the
    second and .4 % by the first rule, GWQ (Shao et al. 2024, arXiv:2411.00850) 1 % by the second,
    SpQR (Dettmers et al. 2023, arXiv:2306.03078) those above a threshold by the third.

    Args:
        rows: ``[O, K]`` float32.
        branch: With picks.
        form: What errors cost.
        plain: Codes of the weight in the plain format.

    Raises:
        InputError: If gradients are asked for, and the form does not know them.
    """
    taken = torch.zeros(rows.numel(), dtype=torch.bool)
    for pick, count in zip(branch.picks, branch.counts(rows.numel()), strict=True):
        score = _score(pick.rule, rows, form, plain).double().flatten()
        score[taken] = -torch.inf
        # Stable, so that of equals the first are kept on every machine.
        taken[score.argsort(descending=True, stable=True)[:count]] = True
    return taken.view(rows.shape)


def _score(rule: str, rows: Tensor, form: ErrorForm, plain: Codes) -> Tensor:
    if rule == "m":
        return rows.abs()
    if rule == "e":
        errors = rows - _to_nearest(rows, plain).numbers()
        return errors.double().square() * form.left_to_others(len(rows))
    if not _knows_numbers(rows.shape, form):
        raise InputError(
            "a sparse branch by gradients (g, such as w3g64+s1%g) needs those of every weight, "
            "which this rounding does not look at: take rounding 'weighted-nearest' (--rounding), "
            "or keep weights by magnitude (m) or error (e)"
        )
    return form.diagonal(len(rows))


def _knows_numbers(shape: Sequence[int], form: ErrorForm) -> bool:
    """Whether each number of a weight has a share of its own in the cost, as Fisher's has."""
    return bool(form.blocks) and all(
        block.shape[0] == shape[0] and block.shape[-1] == 1 for _, block in form.blocks
    )


def _to_nearest(rows: Tensor, plain: Codes) -> Codes:
    """Codes to nearest on the grid of others, which may fit data."""
    tensor_format = plain.tensor_format
    is_one = tensor_format.granularity is Granularity.TENSOR
    scale, point = ((x[:1] if is_one else x).flatten() for x in (plain.scale, plain.zero_point))
    grid = Grid(
        tensor_format.number, scale, point, tensor_format.symmetric, second=None,
        levels=plain.levels,
    )  # fmt: skip
    return Codes.of(rows, tensor_format, grid)
