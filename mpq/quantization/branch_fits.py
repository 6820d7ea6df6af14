"""A weight as codes with a branch beside them: which numbers each of them has."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from mpq.quantization.branch_numbers import BranchNumbers, LowRankNumbers, SparseNumbers
from mpq.quantization.branch_rules import places_by_rule
from mpq.quantization.codes import Codes
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.rounding import sharing_scale
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.side_branch import LowRank, Sparse
from mpq.quantization.tensor_format import TensorFormat

SHARES: Final = tuple(0.25 * 2**step for step in range(8))
"""Percents of weights that codes are made without: all of these that a format's own reaches."""
ALTERNATIONS: Final = 2
"""How often codes and a product take turns, at each rank."""
Rounded = Callable[[Tensor], Codes]
"""Makes codes in the plain format of a weight ``[O, K]``, or of what a branch leaves of it."""


def rehearsed(tensor_format: TensorFormat) -> TensorFormat:
    """What takes as long before gradients are known: picks by these are by magnitude."""
    branch = tensor_format.branch
    if not isinstance(branch, Sparse):
        return tensor_format
    picks = tuple(replace(x, rule="m") if x.rule == "g" else x for x in branch.picks)
    return replace(tensor_format, branch=replace(branch, picks=picks))


def with_branches(
    rows: Tensor, formats: Sequence[TensorFormat], form: ErrorForm, plain: Codes, rounded: Rounded
) -> list[Codes]:
    """A weight in formats that differ in their branches alone.

    Where rules pick weights for a sparse branch, codes are made without these. Each other format
    has the best, by the form, of some codes with the branch that suits these; the codes of the
    plain format with no branch are among them. What is tried for a smaller share or rank is tried
    for a larger one, too, so that the error does not rise with either (but for the last digits of
    fp16).

    Args:
        rows: ``[O, K]`` float32, on the CPU.
        formats: With branches.
        form: What errors cost.
        plain: Codes of the weight in the plain format.
        rounded: Makes other codes in it.
    """
    fits = [_Best(f, form.of(rows - plain.numbers()), plain) for f in formats]
    for fit in fits:
        if isinstance(fit.tensor_format.branch, Sparse) and fit.tensor_format.branch.picks:
            fit.take(*_by_rule(rows, fit.tensor_format.branch, form, plain, rounded))
    sparse = [
        fit
        for fit in fits
        if isinstance(fit.tensor_format.branch, Sparse) and not fit.tensor_format.branch.picks
    ]
    low_rank = [fit for fit in fits if isinstance(fit.tensor_format.branch, LowRank)]
    if sparse:
        _fit_sparse(rows, sparse, form, plain, rounded)
    if low_rank:
        _fit_low_rank(rows, low_rank, form, plain, rounded)
    return [fit.codes() for fit in fits]


class _Best:
    """The best codes and branch of a format that were offered; no branch to begin with."""

    def __init__(self, tensor_format: TensorFormat, cost: float, plain: Codes) -> None:
        self.tensor_format, self._cost, self._codes = tensor_format, cost, plain
        self._branch: BranchNumbers | None = None

    def offer(self, cost: float, codes: Codes, branch: BranchNumbers) -> None:
        """Keeps what is better; of equals the first."""
        if cost < self._cost:
            self._cost, self._codes, self._branch = cost, codes, branch

    def take(self, codes: Codes, branch: BranchNumbers) -> None:
        """Keeps what a rule has chosen, whatever it costs."""
        self._codes, self._branch = codes, branch

    def codes(self) -> Codes:
        shape = len(self._codes.codes), self._codes.num_inputs
        branch = self._branch or none_of(self.tensor_format, shape)
        return replace(self._codes, tensor_format=self.tensor_format, branch=branch)


def none_of(tensor_format: TensorFormat, shape: tuple[int, int]) -> BranchNumbers:
    """A branch of a format that adds nothing.

    Args:
        tensor_format: That has a branch.
        shape: ``[O, K]`` of the weight.
    """
    if isinstance(tensor_format.branch, Sparse):
        return SparseNumbers.of(np.zeros(shape, np.float16))
    assert tensor_format.branch is not None
    rank = min(tensor_format.branch.rank, *shape)
    return LowRankNumbers(
        np.zeros((shape[0], rank), np.float16), np.zeros((rank, shape[1]), np.float16)
    )


def _by_rule(
    rows: Tensor, branch: Sparse, form: ErrorForm, plain: Codes, rounded: Rounded
) -> tuple[Codes, SparseNumbers]:
    """Codes of what rules leave, and what is added to them at the picked places."""
    places = places_by_rule(rows, branch, form, plain)
    codes = rounded(_without(rows, places, plain.tensor_format))
    values = _half(form.best_at(rows - codes.numbers(), places))
    return codes, SparseNumbers.of(values.numpy())


def _fit_sparse(
    rows: Tensor, fits: Sequence[_Best], form: ErrorForm, plain: Codes, rounded: Rounded
) -> None:
    r"""Weights that stick out are left to the branch, and the scales of the others get smaller.

    Codes are made of the weight as it is, and without (``_without``) the largest
    ``w^4 / (m [H^-1]_kk)``, where
    ``m`` is the mean square of those that share a scale: what losing the weight would cost (optimal
    brain surgeon, as in SpQR, Dettmers et al. 2023, arXiv:2306.03078), times how far it sticks out.
    In SqueezeLLM (Kim et al. 2023, arXiv:2306.07629) it is the magnitude and the sensitivity. The
    rest of the share goes where it lowers the cost most, :math:`(E H)_{rk}^2 / H_{kk}`; all values
    are then those of the least cost, given the codes and the places.
    """
    order = _sticking_out(rows, form, plain.tensor_format).flatten()
    order = order.argsort(descending=True, stable=True)
    counts = {fit: _count(fit.tensor_format, rows) for fit in fits}
    tried = {0, *(Sparse(share).count(rows.numel()) for share in SHARES)}
    for taken in sorted(tried):
        asked = [fit for fit in fits if counts[fit] >= taken]
        if not asked:
            break
        left_out = torch.zeros(rows.numel(), dtype=torch.bool)
        left_out[order[:taken]] = True
        left_out = left_out.view(rows.shape)
        codes = rounded(_without(rows, left_out, plain.tensor_format)) if taken else plain
        errors = rows - codes.numbers()
        rest = _gains(errors - form.best_at(errors, left_out), form, left_out)
        rest = rest.flatten().argsort(descending=True, stable=True)
        for fit in asked:
            places = torch.zeros(rows.numel(), dtype=torch.bool)
            places[rest[: counts[fit]]] = True
            values = _half(form.best_at(errors, places.view(rows.shape)))
            cost = form.of(errors - values.double())
            fit.offer(cost, codes, SparseNumbers.of(values.numpy()))


def _count(tensor_format: TensorFormat, rows: Tensor) -> int:
    assert isinstance(tensor_format.branch, Sparse)
    return tensor_format.branch.count(rows.numel())


def _without(rows: Tensor, left_out: Tensor, tensor_format: TensorFormat) -> Tensor:
    """What codes are made of where some numbers are left to the branch: these are 0.

    Where no code stands for 0 they are of the mean magnitude of the others that share their scale,
    which is then that of these alone (the binarized part of PB-LLM, Shang et al. 2023,
    arXiv:2310.00034).
    """
    kept = torch.where(left_out, 0.0, rows)
    if tensor_format.number.has_zero:
        return kept
    shared, counted = (
        sharing_scale(part, tensor_format) for part in (kept.abs(), (~left_out).to(rows))
    )
    mean = shared.sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True).clamp_min(1e-9)
    mean = mean.expand_as(shared).reshape(len(rows), -1)[:, : rows.shape[1]]
    return torch.where(left_out, mean.copysign(rows), rows)


def _sticking_out(rows: Tensor, form: ErrorForm, tensor_format: TensorFormat) -> Tensor:
    """``[O, K]``, see ``_fit_sparse``."""
    shared = sharing_scale(rows, tensor_format).double().square()
    mean = shared.mean(dim=1, keepdim=True).expand_as(shared)
    mean = mean.reshape(len(rows), -1)[:, : rows.shape[1]]
    share = torch.where(mean > 0, rows.double().square() / mean, 0.0)
    return rows.double().square() * share * form.left_to_others(len(rows))


def _gains(errors: Tensor, form: ErrorForm, taken: Tensor) -> Tensor:
    """``[O, K]`` what is gained by one more number alone; infinite at places that are taken."""
    found = form.gradient(errors).square_().div_(form.diagonal(len(errors)))
    return found.masked_fill_(taken, torch.inf)


def _fit_low_rank(
    rows: Tensor, fits: Sequence[_Best], form: ErrorForm, plain: Codes, rounded: Rounded
) -> None:
    """A product, and codes of what it leaves, in turn.

    At the ranks 1, 2, 4 and so on up to a format's own: the first product is the best one of the
    weight itself (as in SVDQuant, Li et al. 2024, arXiv:2411.05007), then codes of the rest and the
    best product of their error take turns twice (LQ-LoRA, Guo et al. 2023, arXiv:2311.12023).
    Every one of the codes, the plain ones among them (ZeroQuant-V2, Yao et al. 2023,
    arXiv:2303.08302), is offered with the best product of its error, of the format's rank.
    """
    most = min(*rows.shape, max(_rank(fit) for fit in fits))

    def offered(codes: Codes, tried: int) -> LowRankNumbers:
        errors = rows - codes.numbers()
        found = _product(*form.factors(errors, most))
        halves = (torch.from_numpy(part) for part in (found.left, found.right))
        costs = form.costs_by_rank(errors, *halves)
        for fit in fits:
            if _rank(fit) >= tried:
                # Of fewer columns where more do not help: what is left may be 0 but for fp16.
                rank = min(_rank(fit), most)
                best = int(costs[: rank + 1].argmin())
                fit.offer(float(costs[best]), codes, _filled(found.first(best), rank))
        return found

    offered(plain, 0)
    whole, rank = _product(*form.factors(rows, most)), 1
    while rank <= most:
        product = whole.first(rank)
        for _ in range(ALTERNATIONS):
            left = rows - torch.from_numpy(product.numbers(rows.shape[1]))
            product = offered(rounded(left), rank).first(rank)
        rank *= 2


def _rank(fit: _Best) -> int:
    assert isinstance(fit.tensor_format.branch, LowRank)
    return fit.tensor_format.branch.rank


def _product(left: Tensor, right: Tensor) -> LowRankNumbers:
    return LowRankNumbers(_half(left).numpy(), _half(right).numpy())


def _filled(product: LowRankNumbers, rank: int) -> LowRankNumbers:
    """With zeros up to a rank."""
    missing = rank - product.left.shape[1]
    return LowRankNumbers(
        np.pad(product.left, ((0, 0), (0, missing))), np.pad(product.right, ((0, missing), (0, 0)))
    )


def _half(values: Tensor) -> Tensor:
    largest = SCALE_FORMATS["fp16"].largest
    return values.clamp(-largest, largest).half()
