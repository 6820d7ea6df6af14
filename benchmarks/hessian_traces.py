"""ResNet-20 on CIFAR-10: how near traces come to the exact ones, and what they cost.

    python benchmarks/hessian_traces.py > benchmarks/hessian_traces.json

The exact traces of the Gauss-Newton matrix, which is the Hessian of the divergence from the
original network, are taken one image at a time: the squared norms of its gradients in the
columns of ``diag(sqrt(p)) - p sqrt(p)^T``, one backward pass for each class. Against them: the
default of ``hessian-trace`` over several seeds, with its cost in units of one forward and backward
pass (a training step's, on the same images, timed in turns); Hutchinson's traces, with the share
of layers that are within two of their standard errors and the products that a rank correlation of
0.95 over layers takes; the same for PyHessian, if installed, with products for each layer.
Needs the published weights and images: set MPQ_DATA, or have them in ../shared/data.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from mpq import Calibration
from mpq.cli.loading import load_callable, load_model, load_object
from mpq.network.modules import weight_of
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation, HessianTrace
from mpq.sensitivity.curvature.block_traces import Traces
from mpq.sensitivity.hessian_trace import block_traces

EXAMPLE = Path(__file__).parents[1] / "examples" / "resnet20_cifar10.py"
NUM_SEEDS = 10
NUM_TIMINGS = 7
GROUP = 5  # products that are drawn together
RANK_AGREEMENT = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--hutchinson-images", type=int, default=128)
    parser.add_argument("--products", type=int, default=300)
    parser.add_argument("--pyhessian-probes", type=int, default=10, help="for each layer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(
        f"{EXAMPLE}:make_net", load_object(f"{EXAMPLE}:DATA") / "cifar10/resnet20.safetensors"
    )
    source = load_callable(f"{EXAMPLE}:calibration")
    images = Calibration(source, 0, arguments.images)
    fewer = Calibration(source, 0, arguments.hutchinson_images)
    network = Network.of(model, images)
    exact = _exact(network, images)  # [N, L]
    few_exact = exact[: arguments.hutchinson_images].mean(axis=0)
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
        "layers": len(network.layers),
        "images": len(exact),
        "images_that_make_up_80_percent_of_the_trace": _dominant(exact),
        "gauss_newton": _gauss_newton(network, images, exact.mean(axis=0)),
        "cost": _cost(network, images),
        "hutchinson_images": arguments.hutchinson_images,
        "hutchinson": _hutchinson(network, fewer, few_exact, arguments.products),
    }
    if importlib.util.find_spec("pyhessian"):
        report["pyhessian"] = _pyhessian(network, fewer, few_exact, arguments.pyhessian_probes)
    print(json.dumps(report, indent=1))


def _exact(network: Network, data: Calibration) -> Any:
    """``[N, L]`` traces of every image, by plain autograd."""
    weights = [weight_of(network.layer_module(layer.name)) for layer in network.layers]
    rows = []
    for weight in weights:
        weight.requires_grad_(True)
    for batch in network.batches(data):
        for index in range(batch.size):
            logits = network.outputs(batch.slice(index, index + 1))[0, 0]
            columns = _columns(logits.detach().double()).to(logits.dtype)
            gradients = [
                torch.autograd.grad(logits, weights, column, retain_graph=True)
                for column in columns.T
            ]
            rows.append([float(sum(g.square().sum() for g in one)) for one in zip(*gradients)])  # noqa: B905
    for weight in weights:
        weight.requires_grad_(False)
    return np.array(rows)


def _columns(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=0)
    return torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())


def _dominant(exact: Any) -> int:
    shares = np.sort(exact.sum(axis=1))[::-1].cumsum() / exact.sum()
    return int((shares < 0.8).sum()) + 1


def _gauss_newton(network: Network, data: Calibration, exact: Any) -> dict[str, Any]:
    found = [_traces(network, data, seed=seed) for seed in range(NUM_SEEDS)]
    errors = np.array([abs(traces.weight / exact - 1) for traces in found])  # [seeds, L]
    within = [abs(t.weight - exact) <= 2 * t.weight_error for t in found]
    return {
        "backward_passes": found[0].num_probes,
        "seeds": NUM_SEEDS,
        "largest_relative_error_of_a_layer": {
            "median_over_seeds": float(np.median(errors.max(axis=1))),
            "worst_seed": float(errors.max()),
        },
        "median_relative_error_of_a_layer": float(np.median(errors)),
        "median_stated_relative_standard_error": float(
            np.median([t.weight_error / t.weight for t in found])
        ),
        "share_within_2_standard_errors": float(np.mean(within)),
        "spearman_lowest": min(float(spearmanr(t.weight, exact).statistic) for t in found),
    }


def _cost(network: Network, data: Calibration) -> dict[str, Any]:
    batches = list(network.batches(data))
    pairs = []
    for _ in range(NUM_TIMINGS):
        step = _seconds(lambda: _training_step(network, batches))
        traces = _seconds(lambda: _traces(network, data))
        pairs.append((step, traces))
    ratios = [traces / step for step, traces in pairs]
    return {
        "forward_and_backward_seconds": statistics.median(step for step, _ in pairs),
        "default_in_forward_and_backward_passes": statistics.median(ratios),
        "lowest_and_highest": [min(ratios), max(ratios)],
        "timings": NUM_TIMINGS,
    }


def _training_step(network: Network, batches: list[Any]) -> None:
    weights = [weight_of(network.layer_module(layer.name)) for layer in network.layers]
    for weight in weights:
        weight.requires_grad_(True)
    for batch in batches:
        outputs = network.outputs(batch)
        loss = torch.nn.functional.cross_entropy(outputs[:, 0], batch.targets)
        torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)


def _traces(network: Network, data: Calibration, **how: Any) -> Traces:
    """The traces that the estimator takes; nothing is rounded for them."""
    on = Estimation(network, data, Quantizer(ActivationRanges({})), ())
    return block_traces(on, HessianTrace(**how))


def _seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _hutchinson(network: Network, data: Calibration, exact: Any, products: int) -> dict[str, Any]:
    how = {"matrix": "hessian", "num_probes": GROUP}
    start = time.perf_counter()
    drawn = [_traces(network, data, seed=seed, **how) for seed in range(products // GROUP)]
    seconds = time.perf_counter() - start
    step = _seconds(lambda: _training_step(network, list(network.batches(data))))
    rows = _by_count(drawn, exact)
    return {
        "cost_of_a_product_in_forward_and_backward_passes": seconds / products / step,
        "products": rows,
        "products_for_rank_agreement_0.95": _enough(rows),
    }


def _pyhessian(network: Network, data: Calibration, exact: Any, probes: int) -> dict[str, Any]:
    how = {"matrix": "hessian", "backend": "pyhessian", "num_probes": 2}
    drawn = [_traces(network, data, seed=seed, **how) for seed in range(probes // 2)]
    rows = _by_count(drawn, exact)
    for row in rows:
        row["products"] *= len(network.layers)
    return {"products": rows, "products_for_rank_agreement_0.95": _enough(rows)}


def _by_count(drawn: list[Traces], exact: Any) -> list[dict[str, Any]]:
    """For 1, 2, 4, ... groups: means over as many disjoint sets of them as there are."""
    rows = []
    size = 1
    while size <= len(drawn):
        sets = [drawn[i : i + size] for i in range(0, len(drawn) - size + 1, size)]
        means = [reduce(Traces.with_more, some) for some in sets]
        rows.append(
            {
                "products": means[0].num_probes,
                "sets": len(means),
                "spearman": float(np.mean([spearmanr(m.weight, exact).statistic for m in means])),
                "median_relative_error": float(
                    np.median([abs(m.weight / exact - 1) for m in means])
                ),
                "median_stated_relative_standard_error": float(
                    np.median([abs(m.weight_error / m.weight) for m in means])
                ),
                "share_within_2_standard_errors": float(
                    np.mean([abs(m.weight - exact) <= 2 * m.weight_error for m in means])
                ),
            }
        )
        size *= 2
    return rows


def _enough(rows: list[dict[str, Any]]) -> int | None:
    """The first count that reached it; ``null``: none did."""
    return next((row["products"] for row in rows if row["spearman"] >= RANK_AGREEMENT), None)


if __name__ == "__main__":
    main()
