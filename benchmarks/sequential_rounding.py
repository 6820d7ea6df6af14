"""What rounding an answer again, layer by layer, is worth on fresh examples, and what it costs.

    python benchmarks/sequential_rounding.py llama > benchmarks/sequential_rounding/llama.json
    python benchmarks/sequential_rounding.py vit --settings --bits 3,4 \
        > benchmarks/sequential_rounding/vit-settings.json

ResNet-20, the vision transformer and the small Llama, weights only: the search's answers with the
default rounding, at the bytes of uniform 3, 4 and 5 bits, with the codes that were found in
parallel, with codes that were found in order whatever the trial says (``in_order``), and what the
trial on unseen calibration examples decides (``is_kept``). KL divergence in nats on fresh examples,
and its ratio to the parallel codes' with a 95 % interval by paired bootstrap over examples. Times
are processor time of one thread, in units of a forward pass over the calibration examples.

``--settings`` compares steps and dampings, which is how the product's were chosen: on calibration
examples that no code was found with (the search's held-out ones and those that other seeds draw),
none of the fresh ones. Networks, examples and seeds are those of ``rounding_search.py``. Needs the
published networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import Any, Final

import torch
from estimators import NETWORKS
from rounding_search import (
    BUDGET_BITS,
    CANDIDATES,
    Batches,
    batched,
    network,
    parts,
    ratio,
    solved,
)
from torch import Tensor

import mpq
from mpq.network.modules import share_parameters
from mpq.quantization.precision import Precision
from mpq.sensitivity import Estimation
from mpq.workflows.defaults import ESTIMATOR, SOLVER
from mpq.workflows.evaluate import Reference
from mpq.workflows.evaluator import Evaluator
from mpq.workflows.in_order import InOrder
from mpq.workflows.method import Method
from mpq.workflows.sequential_rounding import trial
from mpq.workflows.setup import Prepared

SETTINGS: Final = ((1.0, 0.05), (0.5, 0.05), (1.0, 0.01), (0.5, 0.01), (1.0, 0.002))
"""Steps and dampings."""
OTHER_SEEDS: Final = 4
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounding", default="auto")
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    parser.add_argument("--settings", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = list(map(int, given.bits.split(",")))
    rows = [
        row
        for name in given.networks
        for seed in range(given.seeds)
        for row in Answers(name, seed, given.rounding, asked).rows(given.settings)
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


class Answers:
    """One network's answers at some budgets, with the codes of the parallel rounding."""

    def __init__(self, name: str, seed: int, rounding: str, budget_bits: list[int]) -> None:
        self._name, self._seed = name, seed
        self.model, (self._calibration, self.fresh) = network(name, seed)
        seen, held_out = parts(self._calibration)
        task = mpq.Task(
            self.model, seen, held_out, candidates=CANDIDATES, rounding=rounding, seed=seed
        )
        prepared = self.prepared = Prepared.of(task)
        self._on = Estimation(
            prepared.network, prepared.calibration, prepared.quantizer, prepared.candidates
        )
        method = Method.of(ESTIMATOR, SOLVER, seed)
        estimate = method.estimator.estimate(self._on)
        self.chosen = {
            bits: solved(
                prepared,
                method,
                estimate,
                mpq.Limit.parse(f"weight_bytes=1x:w{bits}"),
            )
            for bits in budget_bits
        }
        print(name, seed, "searched", file=sys.stderr)

    def rows(self, is_settings: bool) -> Rows:
        """A row for every budget, or every setting."""
        asked = self._settings if is_settings else self._compared
        return [row for bits, chosen in self.chosen.items() for row in asked(bits, chosen)]

    def _named(self, bits: int, **values: Any) -> dict[str, Any]:
        print(self._name, self._seed, bits, values, file=sys.stderr)
        return {"network": self._name, "seed": self._seed, "bits": bits, **values}

    def _settings(self, bits: int, chosen: dict[str, Precision]) -> Rows:
        rounding, on = self.prepared.task.weight_rounding, self._on
        original = Reference(share_parameters(self.model), mpq.Calibration.of(self._others()))
        evaluator = Evaluator(on.network, on.quantizer, original)
        rows = [self._named(bits, step=0, kl_nats=evaluator.measure(chosen).divergence)]
        for step, damping in SETTINGS:
            codes, _ = InOrder(on, chosen, rounding, self._seed, step, damping).codes()
            quantizer = replace(on.quantizer, stored={**on.quantizer.stored, **codes})
            found = replace(evaluator, quantizer=quantizer).measure(chosen).divergence
            rows.append(self._named(bits, step=step, damping=damping, kl_nats=found))
        return rows

    def _others(self) -> Batches:
        """Calibration examples that no code is found with."""
        seen, held_out = parts(self._calibration)
        own = {x.numpy().tobytes() for batch, _ in seen for x in batch}
        found: dict[bytes, tuple[Tensor, Tensor]] = {}
        drawn = (network(self._name, self._seed + 1 + i)[1][0] for i in range(OTHER_SEEDS))
        for batches in (held_out, *drawn):
            pairs = (pair for x, y in batches for pair in zip(x, y, strict=True))
            found |= {x.numpy().tobytes(): (x, y) for x, y in pairs}
        x, y = map(torch.stack, zip(*(v for k, v in found.items() if k not in own), strict=True))
        print(self._name, len(x), "calibration examples without codes", file=sys.stderr)
        return batched(x, y, size=len(self._calibration[0][0]))

    def _compared(self, bits: int, chosen: dict[str, Precision]) -> Rows:
        rounding, on = self.prepared.task.weight_rounding, self._on
        in_order = InOrder(on, chosen, rounding, self._seed)
        start = time.process_time()
        told = trial(in_order)
        decided = time.process_time()
        codes, _ = in_order.codes()
        done, forward_seconds = time.process_time(), self.forward_seconds()
        original = Reference(share_parameters(self.model), mpq.Calibration.of(self.fresh))
        before, after = (
            Evaluator(on.network, replace(on.quantizer, stored=cells), original).measure(chosen)
            for cells in (on.quantizer.stored, {**on.quantizer.stored, **codes})
        )
        row = self._named(
            bits,
            parallel=ratio(before.by_example, before.by_example)["kl_nats"],
            in_order=ratio(after.by_example, before.by_example),
            is_kept=told.is_kept,
            calibration_kl_nats=told.loss,
            parallel_calibration_kl_nats=told.loss_before,
            left=dict(told.left),
            accuracy={"parallel": before.accuracy, "in_order": after.accuracy},
            trial_passes=(decided - start) / forward_seconds,
            codes_passes=(done - decided) / forward_seconds,
        )
        return [row]

    def forward_seconds(self) -> float:
        """Of one pass over the calibration examples."""
        network, start = self.prepared.network, time.process_time()
        with torch.no_grad():
            for batch in network.batches(self.prepared.calibration):
                network.outputs(batch)
        return time.process_time() - start


if __name__ == "__main__":
    main()
