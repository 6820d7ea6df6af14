"""MixDQ and ViDiT-Q: groups at swept budgets of a tiny network, and the published 794 layers."""

import math
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mpq
from mpq.problem.budget import Budget
from mpq.problem.constraints import Constraints
from mpq.problem.cost_table import CostTable
from mpq.problem.layer_groups import LayerGroups
from tests.recipes.reference import LAYERS, Floats, data, least, rounded, tiny

BITS = (3, 4, 8)
FIRST, OTHERS = [1, 3], [0, 2, 4]  # layers "2" and "6", and all others


def outputs(bits: dict[int, int]) -> torch.Tensor:
    """Of the network with the weights of some layers rounded."""
    quantized = deepcopy(tiny())
    with torch.no_grad():
        for layer, b in bits.items():
            weight = quantized.get_parameter(f"{LAYERS[layer]}.weight")
            weight.copy_(rounded(weight, b))
        return quantized(torch.cat([x for x, _ in data()]))  # type: ignore[no-any-return]


def tables() -> Floats:
    """Cosine distance of the first group's outputs, decibels of the others'."""
    known, table = outputs({}), np.zeros((5, 3))
    for layer, (column, b) in product(range(5), enumerate(BITS)):
        found = outputs({layer: b})
        noise = (found - known).square().sum(1) / known.square().sum(1)
        cosine = 1 - F.cosine_similarity(found, known, dim=1)
        score = cosine if layer in FIRST else 10 * noise.log10()
        table[layer, column] = float(score.mean())
    return table


def best_of_ratios(limit: float, low: float, high: float) -> list[int]:
    """Each group's best at mean bits of ``k`` to 1; of five ratios what diverges least."""
    table, p = tables(), outputs({}).log_softmax(1)
    sizes = np.array([tiny().get_parameter(f"{name}.weight").numel() for name in LAYERS])
    cost, answers = sizes[:, None] * np.array(BITS, dtype=float), []
    for k in np.linspace(low, high, 5):
        mean = limit / (k * sizes[FIRST].sum() + sizes[OTHERS].sum())
        assert 3 <= min(mean, k * mean) <= max(mean, k * mean) <= 8, "no share is clipped"
        columns: dict[int, int] = {}
        for group, share in ((FIRST, k * mean), (OTHERS, mean)):
            found = least(table[group], cost[group], share * sizes[group].sum())
            columns |= dict(zip(group, found, strict=True))
        answers.append({i: BITS[columns[i]] for i in range(5)})
    losses = [F.kl_div(outputs(bits).log_softmax(1), p, log_target=True, reduction="batchmean")
              for bits in answers]  # fmt: skip
    best = answers[int(torch.stack(losses).argmin())]
    return [best[i] for i in range(5)]


@pytest.mark.parametrize("name", ["mixdq", "vidit-q"])
@pytest.mark.parametrize("mean", [4.1, 5.3])
def test_bits_of_a_tiny_network(name: str, mean: float) -> None:
    """Groups of its own names, by metrics that need no images; the same way for both recipes."""
    task = mpq.Task(tiny(), data, data, candidates=[f"w{b}" for b in BITS])

    found = mpq.search(
        task, {"bit_operations": 237 * mean * 24}, recipe=name, keep=["transforms"],
        sensitivity="decoupled:groups=2|6=cosine;*=decibels",
        solver="swept-budgets:groups=2|6;*,low=0.8,high=1.2,num_ratios=5,is_measured=true",
    )  # fmt: skip

    bits = [found.assignment.precisions[layer].weight.number.bits for layer in LAYERS]
    assert bits == best_of_ratios(237 * mean, 0.8, 1.2)


SENSITIVITY = "sensitivity_log/sdxl_turbo/weight/{0}/bs32_split_{0}_weight/sensitivity.yaml"
SIZES = "optimize/tensor_ratio/sdxl_turbo/weight_ratio_config.yaml"
PUBLISHED = "mixed_percision_config/sdxl_turbo/final_config/weight/weight_5.02.yaml"


def read(file: Path) -> dict[str, Any]:
    """A YAML file of numbers, or of lists of numbers, by name; as there is no more in these."""
    found: dict[str, Any] = {}
    name = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("- "):
            found[name] = [*(found[name] or []), float(line[2:])]
        elif line.strip():
            name, _, value = line.rpartition(":")
            found[name] = float(value) if value.strip() else None
    return found


def at_least_as_good(folder: Path) -> int:
    """Number of layers, of which our answer has at least the published sums at its own budgets."""
    scores = {metric: read(folder / SENSITIVITY.format(metric)) for metric in ("ssim", "sqnr")}
    sizes, published = read(folder / SIZES), read(folder / PUBLISHED)
    groups = LayerGroups.parse("*ff*|*attn2*=ssim;*=sqnr")
    names = tuple(published)
    for group, metric in enumerate(groups.metrics):
        own = tuple(n for n, g in zip(names, groups.of(names), strict=True) if g == group)
        bits = sorted(
            {*((2, 4, 8) if metric == "ssim" else (4, 8)), *(int(published[n]) for n in own)}
        )
        precisions = tuple(mpq.Precision.parse(f"w{b}a8") for b in bits)
        table = np.array([[scores[metric][n][int(math.log2(b)) - 1] for b in bits] for n in own])
        size = np.array([sizes[n] for n in own])
        cost = CostTable("bits", "bits", own, precisions, size[:, None] * np.array(bits))
        loss = CostTable("loss", "relative", own, precisions, table.max() - table)
        theirs = np.array([bits.index(int(published[n])) for n in own])
        limit = Budget.of(cost, cost.total(theirs))

        found = mpq.SOLVERS.build("auto").solve(mpq.Problem(loss, Constraints((limit,))))

        assert found.columns is not None
        assert cost.total(found.columns) <= limit.limit * (1 + 1e-9)
        assert loss.total(found.columns) <= loss.total(theirs) + 1e-9
    return len(names)


def test_the_published_tables_of_sdxl_turbo(data_dir: Path) -> None:
    """Within the same budget of each group at least the sum that the published bits have."""
    folder = data_dir / "mixdq"
    if not (folder / PUBLISHED).is_file():
        pytest.skip("the published tables of MixDQ are not there")

    assert at_least_as_good(folder) == 794


def test_the_check_on_tables_of_the_same_form(tmp_path: Path) -> None:
    """Files as they are published, of 12 layers and bits that somebody chose."""
    rng = np.random.default_rng(0)
    names = [f"model.b.{i}.{part}" for i in range(4) for part in ("ff.net", "attn2.to_k", "conv")]
    texts = {SIZES: "", PUBLISHED: ""} | {SENSITIVITY.format(m): "" for m in ("ssim", "sqnr")}
    for name in names:
        texts[SIZES] += f"{name}: {rng.integers(1, 99) / 9}\n"
        texts[PUBLISHED] += f"{name}: {rng.choice([4, 8])}\n"
        for metric in ("ssim", "sqnr"):
            rows = "".join(f"- {x}\n" for x in np.sort(rng.random(3)))
            texts[SENSITIVITY.format(metric)] += f"{name}:\n{rows}"
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")

    assert at_least_as_good(tmp_path) == 12
