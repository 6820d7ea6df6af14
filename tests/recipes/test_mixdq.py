"""MixDQ and ViDiT-Q: groups at swept budgets of a tiny network, and the published 794 layers."""

import json
import subprocess
import sys
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mpq
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


SCRIPT = Path(__file__).parents[2] / "benchmarks" / "mixdq.py"
SENSITIVITY = "sensitivity_log/sdxl_turbo/weight/{0}/bs32_split_{0}_weight/sensitivity.yaml"
SIZES = "optimize/tensor_ratio/sdxl_turbo/weight_ratio_config.yaml"
PUBLISHED = "mixed_percision_config/sdxl_turbo/final_config/weight/weight_5.02.yaml"


def beside(folder: Path) -> list[dict[str, Any]]:
    """What the benchmark says of both groups: ours at the published budgets of each."""
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    for row in rows:
        assert row["our_bits"] <= row["published_bits"] * (1 + 1e-9)
        assert row["our_sum"] >= row["published_sum"] - 1e-9
    return rows


def test_the_published_tables_of_sdxl_turbo(data_dir: Path) -> None:
    """Within the same budget of each group the optimum is what was published, layer by layer."""
    folder = data_dir / "mixdq"
    if not (folder / PUBLISHED).is_file():
        pytest.skip("the published tables of MixDQ are not there")

    rows = beside(folder)

    assert [row["layers"] for row in rows] == [420, 374]
    assert [row["layers_alike"] for row in rows] == [420, 374]


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

    assert [row["layers"] for row in beside(tmp_path)] == [8, 4]
