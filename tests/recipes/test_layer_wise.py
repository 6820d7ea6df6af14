"""Layer-Wise Quantization: which blocks get more bits, by cosines that a reference takes."""

import numpy as np
import pytest
from torch.nn import functional as F

import mpq
from tests.recipes.five_blocks import Net, data


def first_blocks(limit: float, fewer: int, more: int) -> set[int]:
    """Blocks in the order of the least cosine, as many at more bits as the limit holds.

    The head, for which no block turns its input, comes first: its importance is 1.
    """
    net, x, cosines = Net(), next(data()), []
    for block in net.blocks:
        y = block(x).detach()
        cosines.append(float(F.cosine_similarity(x, y, dim=-1).mean()))
        x = y
    order = [int(i) for i in np.argsort(cosines)]
    assert cosines[order[0]] > 0, "the head has a cosine of 0"
    sizes = dict.fromkeys(range(5), 96) | {-1: 18}
    used, taken = float(sum(sizes.values()) * fewer), set[int]()
    for i in [-1, *order]:
        used += sizes[i] * (more - fewer)
        if used > limit:
            break
        taken.add(i)
    return taken


@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_the_first_blocks_have_more_bits(share: float) -> None:
    """And all layers of a block the same ones."""
    task = mpq.Task(Net(), data, data, candidates=["w2a8", "w4a8"])
    limit = 498 * 8 * (2 + share * 2)

    found = mpq.search(task, {"bit_operations": limit}, recipe="layer-wise-quantization")

    bits = {name: p.weight.number.bits for name, p in found.assignment.precisions.items()}
    by_block = [{bits[f"blocks.{i}.up"], bits[f"blocks.{i}.down"]} for i in range(5)]
    expected = first_blocks(limit / 8, 2, 4)
    assert by_block == [{4} if i in expected else {2} for i in range(5)]
    assert bits["head"] == (4 if -1 in expected else 2)
