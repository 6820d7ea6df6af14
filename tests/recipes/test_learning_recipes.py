"""Quantune, SimQ-NAS and APQ: the best of all assignments, where all can be measured."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mpq
from mpq.errors import MismatchError
from mpq.quantization.ranges import Ranges
from tests.recipes.reference import LAYERS, data, rounded, tiny

Way = tuple[Callable[[Tensor], Tensor], int | None, int]
"""How a weight is rounded, bits of the input, bit operations of a weight."""


def flat(x: Tensor, bits: int) -> Tensor:
    """To nearest with a zero point, one scale that covers all and 0."""
    low, high = float(x.min().clamp(max=0)), float(x.max().clamp(min=0))
    scale = (high - low) / (2**bits - 1)
    zero = round(-low / scale)
    codes: Tensor = ((x / scale).round() + zero).clamp(0, 2**bits - 1)
    back: Tensor = (codes - zero) * scale
    return back


def best_of_all(ways: list[Way], limit: float, groups: list[list[int]]) -> list[int]:
    """Columns of the least divergence of the whole network within a limit."""
    net, x = tiny(), torch.cat([x for x, _ in data()])
    layers = [net.get_submodule(name) for name in LAYERS]
    weights = [layer.get_parameter("weight").detach() for layer in layers]
    best, found = float("inf"), list[int]()
    with torch.no_grad():
        original, reads = net(x).log_softmax(1), [net[: 2 * i](x) for i in range(5)]
        for choice in product(range(len(ways)), repeat=len(groups)):
            columns = [next(c for c, g in zip(choice, groups, strict=True) if i in g)
                       for i in range(5)]  # fmt: skip
            if sum(w.numel() * ways[c][2] for w, c in zip(weights, columns, strict=True)) > limit:
                continue
            y = x
            for i, c in enumerate(columns):
                y = y.tanh() if i else y
                if (bits := ways[c][1]) is not None:  # in the range that the original reads
                    wide = torch.cat([reads[i].flatten(), y.flatten()])
                    wide = wide.clamp(float(reads[i].min()), float(reads[i].max()))
                    y = flat(wide, bits)[reads[i].numel() :].reshape(y.shape)
                y = F.linear(y, ways[c][0](weights[i]), layers[i].get_parameter("bias"))
            loss = float(F.kl_div(y.log_softmax(1), original, log_target=True,
                                  reduction="batchmean"))  # fmt: skip
            if loss < best:
                best, found = loss, columns
    return found


def symmetric(bits: int) -> Callable[[Tensor], Tensor]:
    """A scale per output channel."""
    return lambda w: rounded(w, bits)


ALONE = [[i] for i in range(5)]
CASES: dict[str, tuple[str, dict[str, Way], float, list[list[int]]]] = {
    "apq": ("surrogate", {"w4a4": (symmetric(4), 4, 16), "w8a4": (symmetric(8), 4, 32)}, 24.0,
            ALONE),
    "simq-nas": ("surrogate", {"w3a8": (symmetric(3), 8, 24), "fp32": (lambda w: w, None, 576)},
                 350.0, ALONE),
    "quantune": ("boosted-trees", {"w3a8": (symmetric(3), 8, 24), "w4a8": (symmetric(4), 8, 32),
                 "w4tza8": (lambda w: flat(w, 4), 8, 32)}, 30.0, [[0], [1, 2, 3], [4]]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_bits_of_a_tiny_network(name: str) -> None:
    """With as many measurements as there are assignments nothing is left to what is learned."""
    solver, ways, share, groups = CASES[name]
    task = mpq.Task(tiny(), data, data, candidates=list(ways))

    found = mpq.search(
        task, {"bit_operations": 237 * share}, recipe=name,
        solver=f"{solver}:is_measured=true,num_trials=32",
    )  # fmt: skip

    expected = best_of_all(list(ways.values()), 237 * share, groups)
    texts = list(ways)
    assert [texts.index(str(found.assignment.precisions[x])) for x in LAYERS] == expected


def test_an_earlier_search_teaches_a_later_one(tmp_path: Path) -> None:
    """At another limit, after the weights have changed: few measurements, as good an answer."""
    file, task = tmp_path / "first.log", mpq.Task(tiny(), data, data, candidates=["w2a8", "w4a8"])
    kept = f"surrogate:is_measured=true,num_trials=20,storage={file}"
    mpq.search(task, {"bit_operations": 237 * 24.0}, recipe="apq", solver=kept)
    changed = tiny()
    with torch.no_grad():
        changed.get_parameter("2.weight").mul_(1.1)
    later = mpq.Task(changed, data, data, candidates=["w2a8", "w4a8"])
    words = "surrogate:is_measured=true,batch_size=4"

    limit = {"bit_operations": 237 * 26.0}
    few = mpq.search(later, limit, recipe="apq", solver=f"{words},num_trials=8,earlier={file}")
    all_of_them = mpq.search(later, limit, recipe="apq", solver=f"{words},num_trials=32")

    assert few.measured.divergence <= 1.1 * all_of_them.measured.divergence
    assert few.provenance.recipe is not None
    assert "earlier=" in " ".join(few.provenance.recipe.overrides)


def test_what_was_measured_is_not_taken_for_something_else(tmp_path: Path) -> None:
    """A storage goes on with the same score, examples and rounding; others are named."""
    task = mpq.Task(tiny(), data, data, candidates=["w2a8", "w4a8"])
    solver = f"surrogate:is_measured=true,num_trials=4,storage={tmp_path / 'first.log'}"
    limit = {"bit_operations": 237 * 24.0}

    first = mpq.search(task, limit, recipe="apq", solver=solver)
    again = mpq.search(task, limit, recipe="apq", solver=solver)

    assert again.solution.loss == first.solution.loss
    assert first.loss_unit == "nats"
    others = {
        "score": replace(task, score="accuracy"),
        "examples": replace(task, calibration=lambda: islice(data(), 1)),
        "ranges": replace(task, ranges=Ranges(activation="percentile")),
    }
    for named, other in others.items():
        with pytest.raises(MismatchError, match=rf"measured with other {named}\)"):
            mpq.search(other, limit, recipe="apq", solver=solver)
