"""What tuning a search's answer is worth on fresh examples, and what it costs.

    python benchmarks/tune.py llama --bits 3 > benchmarks/tune/llama-3.json
    python benchmarks/tune.py llama --choosing --bits 3,4 --what scales:lr=1e-3,all:lr=1e-3

ResNet-20, the vision transformer and the small Llama (or those that are named), weights only, the
default rounding, at the bytes of uniform 3, 4 and 5 bits. ``plain`` is the search's answer with all
calibration examples, ``before`` the answer of a search that kept a share of them for tuning, and
every row of ``tuned`` that one after tuning, whatever the decision says (``is_kept``): KL
divergence in nats on fresh examples, and its ratio to ``before`` (of that to ``plain``) with a 95 %
interval by paired bootstrap over examples. With --sequential the answers are rounded again first,
layer by layer; with --without-plain the search with all examples is left out. Times are processor
time of one thread, in units of a forward pass over the examples that are tuned on.

With --choosing the examples are others, by which settings may be chosen without a look at those
that are reported; this is how the defaults were. Networks, examples and seeds are those of
``rounding_search.py``. Needs the published networks: MPQ_DATA, or ../shared/data.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import torch
from estimators import NETWORKS
from rounding_search import BUDGET_BITS, CANDIDATES, Batches, network, parts, ratio

import mpq
from mpq.network.modules import share_parameters
from mpq.problem.assignment import Assignment
from mpq.report.measurement import Measurement
from mpq.workflows.evaluate import Reference
from mpq.workflows.tuning import Examples, Tuner

SHARE: Final = 0.25
WHAT: Final = ("scales", "all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--bits", default=",".join(map(str, BUDGET_BITS)))
    parser.add_argument("--what", nargs="+", default=WHAT)
    parser.add_argument("--choosing", action="store_true")
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--without-plain", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        Answer(name, seed, bits, given.choosing, given.sequential).row(
            given.what, given.without_plain
        )
        for name in given.networks
        for seed in range(given.seeds)
        for bits in map(int, given.bits.split(","))
    ]
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    print(json.dumps({**header, "rows": rows}, indent=1))


@dataclass(frozen=True)
class Answer:
    """One network at the bytes of a uniform precision."""

    name: str
    seed: int
    bits: int
    choosing: bool
    sequential: bool

    def row(self, asked: list[str], without_plain: bool) -> dict[str, Any]:
        """The search's answer with and without a share held back, and what tunings make of it."""
        model, (calibration, fresh) = network(self.name, self.seed, self.choosing)
        seen, held_out = parts(calibration)
        data = mpq.Calibration.of(seen)
        shown, unseen = data.split(SHARE)
        before = self._assignment(model, shown, held_out)
        plain = before if without_plain else self._assignment(model, data, held_out)
        original = Reference(share_parameters(model), mpq.Calibration.of(fresh))
        first, held_back = (_measured(original, model, x) for x in (plain, before))
        forward_seconds = _forward_seconds(model, shown)
        examples = Examples.of(shown, unseen, mpq.Calibration.of(held_out), SHARE)
        rows = []
        for what in asked:
            start = time.process_time()
            tuner = Tuner(model, examples, mpq.TUNINGS.build(what), self.seed)
            made, record = tuner.tried(before)
            seconds = time.process_time() - start
            measured = _measured(original, model, made)
            row = {
                "what": what,
                **ratio(measured.by_example, held_back.by_example),
                "ratio_to_plain": None
                if without_plain
                else float(measured.divergence / first.divergence),
                "accuracy": measured.accuracy,
                "is_kept": record.is_kept,
                "best_epoch": record.best,
                "deciding_kl_nats": record.loss,
                "deciding_kl_nats_before": record.loss_before,
                "num_deciding": record.num_deciding,
                "epochs": list(record.epochs),
                "passes": seconds / forward_seconds,
            }
            print(self.name, self.seed, self.bits, row, file=sys.stderr)
            rows.append(row)
        return {
            "network": self.name,
            "seed": self.seed,
            "bits": self.bits,
            "plain": None
            if without_plain
            else {"kl_nats": first.divergence, "accuracy": first.accuracy},
            "before": {
                **ratio(held_back.by_example, first.by_example),
                "accuracy": held_back.accuracy,
            },
            "tuned": rows,
        }

    def _assignment(
        self, model: torch.nn.Module, data: mpq.Calibration, held_out: Batches
    ) -> Assignment:
        task = mpq.Task(
            model, data, held_out, candidates=CANDIDATES, seed=self.seed,
            sequential_rounding=self.sequential,
        )  # fmt: skip
        return mpq.search(task, {"weight_bytes": f"1x:w{self.bits}"}).assignment


def _measured(original: Reference, model: torch.nn.Module, assignment: Assignment) -> Measurement:
    return original.compare(mpq.quantize(model, assignment))


def _forward_seconds(model: torch.nn.Module, data: mpq.Calibration) -> float:
    start = time.process_time()
    with torch.no_grad():
        for batch in data:
            model(*batch.args, **batch.kwargs)
    return time.process_time() - start


if __name__ == "__main__":
    main()
