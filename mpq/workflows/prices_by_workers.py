"""The user's own score of single layers, asked by other processes before an estimate needs it."""

from dataclasses import replace
from typing import TypeAlias

from mpq._support.progress import track
from mpq._support.workers import TaskWorkers
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.cell_tasks import require_cpu
from mpq.workflows.score import Judge

_Sent: TypeAlias = tuple[Judge, Network, Quantizer]
_Cell: TypeAlias = tuple[int, dict[str, Precision]]


def ask_ahead(workers: TaskWorkers, judge: Judge, on: Estimation) -> None:
    """Of every layer at every candidate; the judge then knows what it is asked in the estimate.

    Args:
        workers: Who asks.
        judge: Of the task; what it knows or keeps already is not asked again.
        on: What the estimator is asked.

    Raises:
        InputError: If the network is on an accelerator.
        ScoreError: As ``Judge.of``.
    """
    require_cpu(on.network.device)
    cells = [{name: on.candidates[column]} for name in on.names for column in on.tried]
    left = [cell for cell in cells if judge.known(on.quantizer, cell) is None]
    if not left:
        return
    # Of the user's function that yields examples only what it gives, and that only if it is read.
    data = Calibration(list(judge.data) if judge.score.reads_examples else [])
    asked = workers.sent((replace(judge.sent, data=data), on.network, on.quantizer), _asked)
    purpose = f"calls of the score, {len(left)}"
    for index, found in track(asked(list(enumerate(left))), purpose, len(left)):
        judge.took(on.quantizer, left[index], found)


def _asked(sent: _Sent, cell: _Cell) -> tuple[int, float]:
    """On a worker: which cell, and what the score says of it."""
    (judge, network, quantizer), (index, precisions) = sent, cell
    return index, judge.of_quantized(network, quantizer, precisions)
