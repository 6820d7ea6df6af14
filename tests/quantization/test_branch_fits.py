"""Branches that are fitted to a weight, against linear algebra of another package."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpq.quantization import error_form
from mpq.quantization.branch_fits import none_of, with_branches
from mpq.quantization.branch_numbers import LowRankNumbers, SparseNumbers
from mpq.quantization.codes import Codes
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.numerics import OWN
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import weight_grid
from mpq.quantization.tensor_format import TensorFormat

Array = np.ndarray[Any, np.dtype[np.float64]]
SHARES = ["s0.1%", "s0.4%", "s1%", "s3%", "s50%"]
RANKS = ["r1", "r2", "r3", "r7", "r12"]
BASES = ["w3g8", "w3t", "w4zfg8", "wcb2", "wmxfp4", "wternaryg8"]


@final
@dataclass(frozen=True)
class Case:
    """A weight and what errors of its rows cost, ``[G, K, K]``."""

    rows: Tensor
    moment: Tensor

    @classmethod
    def of(cls, num_rows: int = 24, num_inputs: int = 16, groups: int = 1) -> "Case":
        """Some numbers stick out, inputs hang together, and all rows have a common part."""
        draw = torch.Generator().manual_seed(0)
        rows = torch.randn(num_rows, num_inputs, generator=draw)
        rows += (
            2 * torch.randn(num_rows, 1, generator=draw) * torch.randn(num_inputs, generator=draw)
        )
        rows.view(-1)[::37] *= 5
        mixing = torch.randn(groups, num_inputs, 3 * num_inputs, generator=draw)
        return cls(rows, mixing @ mixing.mT / num_inputs + 0.01 * torch.eye(num_inputs))

    @property
    def form(self) -> ErrorForm:
        return ErrorForm.of_blocks([(slice(0, self.rows.shape[1]), self.moment)])

    def cost(self, numbers: Tensor) -> float:
        """In double precision, group by group."""
        errors = np.split((self.rows - numbers).double().numpy(), len(self.moment))
        parts = zip(errors, self.moment.double().numpy(), strict=True)
        return float(sum(np.einsum("oi,ij,oj->", e, h, e) for e, h in parts))

    def found(self, formats: list[TensorFormat]) -> list[Codes]:
        """Of formats that differ in their branches alone."""
        plain = formats[0].plain
        return with_branches(
            self.rows, formats, self.form, nearest(self.rows, plain), lambda x: nearest(x, plain)
        )


def nearest(rows: Tensor, plain: TensorFormat) -> Codes:
    grid = weight_grid(rows, plain, RANGE_METHODS.build("mse"), OWN)
    return Codes.of(rows, plain, grid)


def format_of(spelled: str) -> TensorFormat:
    return Precision.parse(spelled).weight


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("branches", [SHARES, RANKS], ids=["shares", "ranks"])
@pytest.mark.parametrize("base", BASES)
def test_the_error_never_rises_with_the_branch(base: str, branches: list[str], groups: int) -> None:
    """Nor above the plain format's; each by itself, as another candidate must not change it."""
    case = Case.of(groups=groups)
    costs = [case.cost(nearest(case.rows, format_of(base)).numbers())]

    for branch in branches:
        (found,) = case.found([format_of(f"{base}+{branch}")])
        assert found.stored(case.rows).why_not(found.tensor_format, tuple(case.rows.shape)) == ""
        costs.append(case.cost(found.numbers()))

    assert all(more <= less * (1 + 1e-6) for less, more in pairwise(costs)), costs
    assert costs[-1] < 0.5 * costs[0]


def test_formats_together_are_as_each_alone() -> None:
    """What is tried for all is tried once."""
    case = Case.of()
    formats = [format_of(f"w3g8+{branch}") for branch in (*SHARES, *RANKS)]

    together = case.found(formats)

    for found, tensor_format in zip(together, formats, strict=True):
        (alone,) = case.found([tensor_format])
        assert found.tensor_format == tensor_format
        assert torch.equal(found.numbers(), alone.numbers())


@pytest.mark.parametrize(("num_rows", "num_inputs"), [(24, 16), (16, 24)])
def test_a_product_is_the_best_of_its_rank(num_rows: int, num_inputs: int) -> None:
    """Of a weight whose codes are all 0: the truncated SVD of the weight by the form's root."""
    case = Case.of(num_rows, num_inputs)
    root = np.linalg.cholesky(case.moment[0].double().numpy())
    values = np.linalg.svd(case.rows.double().numpy() @ root, compute_uv=False)
    empty = nearest(torch.zeros_like(case.rows), format_of("w8"))

    for rank in (1, 3, 8):
        (found,) = with_branches(
            case.rows, [format_of(f"w8+r{rank}")], case.form, empty, lambda _: empty
        )

        assert case.cost(found.numbers()) == pytest.approx(np.square(values[rank:]).sum(), rel=1e-4)


def test_without_a_form_it_is_torchs_svd() -> None:
    """Number by number, to what fp16 holds."""
    case = Case.of()
    left, values, right = torch.linalg.svd(case.rows, full_matrices=False)
    expected = left[:, :3] * values[:3] @ right[:3]
    empty = nearest(torch.zeros_like(case.rows), format_of("w8"))

    (found,) = with_branches(case.rows, [format_of("w8+r3")], ErrorForm(), empty, lambda _: empty)

    torch.testing.assert_close(found.numbers(), expected, atol=5e-3, rtol=5e-3)


def test_numbers_at_places_are_least_squares() -> None:
    """Row by row by numpy, also of groups with forms of their own, and of blocks of a form."""
    case = Case.of(groups=2)
    places = torch.rand(case.rows.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    places[3] = False
    places[4] = True

    found = case.form.best_at(case.rows, places)

    blocks = [(slice(0, 10), case.moment[:, :10, :10]), (slice(10, 16), case.moment[:, 10:, 10:])]
    of_blocks = ErrorForm.of_blocks(blocks).best_at(case.rows, places)
    for row in range(24):
        form, at = case.moment[row // 12].double().numpy(), places[row].numpy()
        cut = form.copy()
        cut[:10, 10:] = cut[10:, :10] = 0
        for matrix, own in ((form, found), (cut, of_blocks)):
            expected = np.zeros(16)
            wanted = (matrix @ case.rows[row].double().numpy())[at]
            expected[at] = np.linalg.solve(matrix[np.ix_(at, at)], wanted)
            np.testing.assert_allclose(own[row].numpy(), expected, rtol=1e-6, atol=1e-9)


def test_of_a_form_in_blocks_a_product_counts_them_apart() -> None:
    """As the whole matrix whose entries between blocks are 0."""
    case = Case.of()
    cut = case.moment.clone()
    cut[:, :10, 10:] = cut[:, 10:, :10] = 0
    blocks = ErrorForm.of_blocks(
        [(slice(0, 10), cut[:, :10, :10]), (slice(10, 16), cut[:, 10:, 10:])]
    )
    whole = ErrorForm.of_blocks([(slice(0, 16), cut)])

    (one, other) = (torch.matmul(*form.factors(case.rows, 4)) for form in (blocks, whole))

    torch.testing.assert_close(one, other)
    torch.testing.assert_close(blocks.left_to_others(24), whole.left_to_others(24))


def test_a_single_weight_that_sticks_out_is_left_to_the_branch() -> None:
    """The scale is then that of the others, which are on the grid: nothing is lost."""
    rows = torch.tensor([1.0, -2.0, 3.0, 1.0, -1.0, -4.0, 2.0, -3.0, 0.0, 2.0]).repeat(4, 10)
    rows[:, 7] = torch.tensor([100.0, -50.0, 20.0, 30.0])
    layer = nn.Linear(100, 4)
    layer.weight.data.copy_(rows)
    quantizer = Quantizer(ActivationRanges({}))

    plain, found = (quantizer.weight("x", layer, format_of(x)) for x in ("w3", "w3+s1%"))

    assert torch.equal(found, rows)
    assert not torch.equal(plain, rows)


@pytest.mark.parametrize("spelled", ["w3g8+s5%", "w3g8+r2", "wcb2+s5%", "w4zg8+r30"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(16, 24),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Embedding(40, 8),
        nn.ConvTranspose1d(4, 6, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_weights_of_every_kind_have_branches(spelled: str, layer: nn.Module) -> None:
    """Codes, what is kept of them, and the simulation agree; the weight stays as it was."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    before, quantizer = weight.detach().clone(), Quantizer(ActivationRanges({}))
    tensor_format = format_of(spelled)

    found = quantizer.weight("x", layer, tensor_format)
    codes = quantizer.codes("x", layer, tensor_format)
    stored = quantizer.kept("x", layer, tensor_format)

    assert stored is not None
    assert torch.equal(weight, before)
    other = Quantizer(ActivationRanges({}), stored={("x", tensor_format): stored})
    assert torch.equal(other.weight("x", layer, tensor_format), found)
    again = Codes.of_stored(stored, tensor_format).numbers()
    assert torch.equal(codes.numbers(), again)
    assert (found - before).norm() < (
        quantizer.weight("x", layer, tensor_format.plain) - before
    ).norm()


def test_a_branch_that_does_not_help_adds_nothing() -> None:
    """Of a weight that is on the grid already; its arrays are of the format all the same."""
    rows = torch.tensor([[1.0, -2.0, 3.0, -4.0], [2.0, -4.0, 0.0, 1.0]])
    form = ErrorForm()
    for spelled in ("w3+s50%", "w3+r2"):
        tensor_format = format_of(spelled)
        plain = nearest(rows, tensor_format.plain)

        (found,) = with_branches(
            rows, [tensor_format], form, plain, partial(nearest, plain=tensor_format.plain)
        )

        assert torch.equal(found.numbers(), rows)
        assert found.branch is not None
        assert found.branch.why_not(tensor_format.branch, (2, 4)) == ""
        assert not found.branch.numbers(4).any()
    assert isinstance(none_of(format_of("w3+r2"), (2, 4)), LowRankNumbers)
    assert isinstance(none_of(format_of("w3+s1%"), (2, 4)), SparseNumbers)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("spelled", ["w3g8+s5%", "w3g8+r2"])
def test_numbers_that_fp16_does_not_hold_make_nothing_worse(spelled: str, factor: float) -> None:
    """Finite, and never above the plain format."""
    case = Case.of()
    layer = nn.Linear(16, 24)
    layer.weight.data.copy_(case.rows * factor)
    quantizer, tensor_format = Quantizer(ActivationRanges({})), format_of(spelled)

    found, plain = (quantizer.weight("x", layer, f) for f in (tensor_format, tensor_format.plain))

    errors = [(x - layer.weight).double().norm() for x in (found, plain)]
    assert found.isfinite().all()
    assert errors[0] <= errors[1]


def test_of_a_large_weight_a_product_is_nearly_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """By subspace iteration: within a hundredth of what the truncated SVD leaves, rank by rank."""
    rows = torch.randn(80, 60, generator=torch.Generator().manual_seed(0))
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    monkeypatch.setattr(error_form, "EXACT_SIDE", 20)

    left, right = ErrorForm().factors(rows, 8)

    for rank in range(1, 9):
        left_over = (rows - left[:, :rank] @ right[:rank]).square().sum()
        assert float(left_over) == pytest.approx(np.square(values[rank:]).sum(), rel=0.01)
    torch.testing.assert_close(left[:, :6], ErrorForm().factors(rows, 6)[0])
