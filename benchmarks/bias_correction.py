"""What correcting an answer's biases is worth on fresh examples, by the rounding of its weights.

    python benchmarks/bias_correction.py vit --roundings nearest --bits 4 \
        > benchmarks/bias_correction/vit-nearest.json

ResNet-20, the vision transformer and the small Llama (which has no biases), weights only: the
search's answers at the bytes of uniform 3, 4 and 5 bits, with the codes that the rounding found,
then with corrected biases whatever the trial says, and what the trial on calibration examples that
the correction did not see decides (``is_kept``). KL divergence in nats on fresh examples, and its
ratio to the uncorrected answer's with a 95 % interval by paired bootstrap over examples. Times are
processor time of one thread, in units of a forward pass over the calibration examples.

Networks, examples and seeds are those of ``rounding_search.py``. Needs the published networks:
MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import sys
import time
from typing import Any

import torch
from estimators import NETWORKS
from rounding_search import ratio
from sequential_rounding import Answers

import mpq
from mpq.network.modules import share_parameters
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision
from mpq.quantization.stored import StoredWeights
from mpq.tuning.bias_correction import bias_corrected
from mpq.workflows.bias_correction import corrected, measured
from mpq.workflows.evaluate import Reference

ROUNDINGS = "nearest,auto"
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--roundings", default=ROUNDINGS)
    parser.add_argument("--bits", default="3,4,5")
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = list(map(int, given.bits.split(",")))
    rows = [
        row
        for name in given.networks
        for seed in range(given.seeds)
        for rounding in given.roundings.split(",")
        for row in rows_of(name, seed, rounding, asked)
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


def rows_of(name: str, seed: int, rounding: str, budget_bits: list[int]) -> Rows:
    answers = Answers(name, seed, rounding, budget_bits)
    return [
        {"network": name, "seed": seed, "rounding": rounding, "bits": bits}
        | compared(answers, chosen)
        for bits, chosen in answers.chosen.items()
    ]


def compared(answers: Answers, chosen: dict[str, Precision]) -> dict[str, Any]:
    prepared, model = answers.prepared, answers.model
    metric, data = prepared.network.metric, prepared.calibration
    assignment = assigned(answers, chosen)
    start = time.process_time()
    _, told = corrected(model, assignment, data, metric)
    decided = time.process_time()
    made = bias_corrected(model, assignment, data)
    done, forward_seconds = time.process_time(), answers.forward_seconds()
    reference = Reference(share_parameters(model), mpq.Calibration.of(answers.fresh), metric)
    before, after = (measured(model, each, reference) for each in (assignment, made.assignment))
    row = {
        "uncorrected": ratio(before.by_example, before.by_example)["kl_nats"],
        "corrected": ratio(after.by_example, before.by_example),
        "is_kept": told.is_kept,
        "why": told.why,
        "trial_kl_nats": told.loss,
        "trial_uncorrected_kl_nats": told.loss_before,
        "num_trial_examples": told.num_examples,
        "num_corrected": len(made.moved),
        "left": dict(made.left),
        "accuracy": {"uncorrected": before.accuracy, "corrected": after.accuracy},
        "decision_passes": (decided - start) / forward_seconds,
        "correction_passes": (done - decided) / forward_seconds,
    }
    print(row, file=sys.stderr)
    return row


def assigned(answers: Answers, chosen: dict[str, Precision]) -> Assignment:
    """With all that a backend needs, for weights alone."""
    prepared = answers.prepared
    layers = {layer.name: layer for layer in prepared.network.layers}
    stored = prepared.quantizer.stored
    cells = {n: (n, p.weight) for n, p in chosen.items() if (n, p.weight) in stored}
    weights = StoredWeights(prepared.task.rounding, {n: stored[c] for n, c in cells.items()})
    return Assignment(
        tuple(
            AssignedLayer(
                n, layers[n].kind, layers[n].weight_shape, p, None, layers[n].is_transposed,
                layers[n].computed,
            )
            for n, p in chosen.items()
        ),
        prepared.ties,
        prepared.network.folded,
        prepared.quantizer.weight_range,
        prepared.quantizer.numerics,
        weights=weights if cells else None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
