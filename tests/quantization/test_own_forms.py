"""Forms in which every number counts by itself: as matrices that are diagonal."""

import torch

from mpq.quantization.error_form import ErrorForm


def test_blocks_of_one_input_are_a_diagonal() -> None:
    """Costs, gradients, what is best at some places, and costs by rank."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.rand(4, 6, generator=generator) + 0.1  # [O, K]
    errors = torch.randn(4, 6, generator=generator)
    places = torch.rand(4, 6, generator=generator) > 0.5
    left, right = torch.randn(4, 2, generator=generator), torch.randn(2, 6, generator=generator)
    own = ErrorForm.of_blocks((slice(k, k + 1), counts[:, k, None, None]) for k in range(6))
    whole = ErrorForm.of_blocks([(slice(0, 6), torch.diag_embed(counts))])

    assert torch.isclose(torch.tensor(own.of(errors)), (counts * errors.square()).sum())
    torch.testing.assert_close(own.gradient(errors), whole.gradient(errors))
    torch.testing.assert_close(own.diagonal(4), whole.diagonal(4))
    torch.testing.assert_close(own.left_to_others(4), whole.left_to_others(4))
    torch.testing.assert_close(own.best_at(errors, places), whole.best_at(errors, places))
    torch.testing.assert_close(
        own.costs_by_rank(errors, left, right), whole.costs_by_rank(errors, left, right)
    )
    last = (counts * (errors - left @ right).square()).sum().double()
    torch.testing.assert_close(own.costs_by_rank(errors, left, right)[-1], last, rtol=1e-5, atol=0)
