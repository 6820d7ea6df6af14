"""HAWQ: order and bits of a tiny network, from its whole Hessian, by trying everything."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import mpq
from mpq.recipes import recipe_of
from tests.recipes.reference import (
    LAYERS,
    data,
    hessians,
    least,
    squared_errors,
    tiny,
    weights_of,
)

BITS = (2, 3, 4, 6, 8)


def expected(limit: float) -> tuple[list[int], list[str]]:
    """Bits that never rise with lambda / n, of the least lambda x error; and the order of that."""
    net = tiny()
    weights = weights_of(net)
    sizes = np.array([w.numel() for w in weights])
    top = np.array([h.double().numpy() for h in hessians(net, list(data()))], dtype=object)
    largest = np.array([abs(np.linalg.eigvalsh(h.astype(float))).max() for h in top])
    loss = largest[:, None] * squared_errors(weights, BITS)
    cost = 4.0 * sizes[:, None] * np.array(BITS)
    order = np.argsort(-largest / sizes)
    columns = least(
        loss, cost, limit, lambda c: all(c[k] >= c[j] for k, j in pairwise(order.tolist()))
    )
    lost = {name: loss[i, c] for i, (name, c) in enumerate(zip(LAYERS, columns, strict=True))}
    return [BITS[c] for c in columns], sorted(lost, key=lambda name: -lost[name])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the estimate is, which is the same at every limit."""
    return tmp_path_factory.mktemp("kept")


@pytest.mark.parametrize("limit", [3000, 3800, 5200])
def test_bits_and_order_of_a_tiny_network(limit: float, kept: Path) -> None:
    """As a reference finds them, and the order of tuning stands in the result."""
    recipe = recipe_of("hawq")
    exact = recipe.sensitivity + ",max_iterations=80,tolerance=1e-5"
    task = mpq.Task(tiny(), data, data, cache=kept)

    found = mpq.search(task, {"bit_operations": limit}, recipe=recipe, sensitivity=exact)

    bits, order = expected(limit)
    assert [found.assignment.precisions[name].weight.number.bits for name in LAYERS] == bits
    assert found.provenance.recipe is not None
    assert list(found.provenance.recipe.tuning_order) == order
    assert "to be fine-tuned in this order" in found.provenance.recipe.sentence
