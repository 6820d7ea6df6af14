"""The main job in Python: limits hold, wishes are honoured, the model stays, the answer is true."""

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, final

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq import Calibration, demo
from mpq._support.progress import Progressed
from mpq.cli.loading import load_callable, load_model
from mpq.errors import LimitError, UnknownNameError
from mpq.problem.solution import Status
from mpq.quantization.precision import Precision
from mpq.sensitivity import Estimation, Sensitivity, SensitivityEstimator
from mpq.workflows.session import Session
from tests.callbacks.listeners import Kept
from tests.tasks import task_of

QUICK: dict[str, Any] = {
    "limits": ["weight_bytes=0.75x:w8a8"],
    "candidates": ["w4a8", "w8a8"],
    "held_out": Calibration(demo.held_out, stop=32),
    "ranges": mpq.Ranges("minmax", "minmax"),
    "rounding": "nearest",
}
QUICK_ESTIMATORS = (
    "auto",
    "sketch:num_probes=2",
    "measured",
    "hessian-trace",
    "relevance",
    "activation-entropy",
    "augmented-hessian",
    "column-loss",
    "decoupled",
    "fisher",
    "first-order",
    "hessian-eigenvalue:max_iterations=3",
    "hessian-form",
    "histogram-kl",
    "layer-input-modification",
    "layer-output",
    "orthogonality",
    "output-gradient",
    "pairwise",
    "z-score",
    "zero-cost",
    "weight-error",
)
NARROW: dict[str, Any] = {"limits": ["effective_bits=0.75x:w8a8"]}
"""Where most layers are left out: their bytes alone would exceed a share of the network's."""
EXAMPLES = Calibration(demo.calibration, stop=64)


def search(model: nn.Module, calibration: Any, **options: Any) -> mpq.SearchResult:
    """A search whose options are those of the task and its own."""
    task, own = task_of(model, calibration, options)
    return mpq.search(task, **own)


def quick(**changes: Any) -> mpq.SearchResult:
    """A search on the demo that takes a fraction of a second."""
    return search(demo.make_net(), EXAMPLES, **{**QUICK, **changes})


def rows_of(path: Path) -> list[dict[str, str]]:
    """A CSV file without pandas."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def packed_bytes(layers: Sequence[dict[str, Any]]) -> int:
    """Bytes of per-channel symmetric weights with an fp32 scale per channel, from the JSON."""
    return sum(
        math.ceil(
            (math.prod(x["weight_shape"]) * x["weight"]["bits"] + 32 * x["weight_shape"][0]) / 8
        )
        for x in layers
    )


def cells(table: mpq.CostTable, precisions: Mapping[str, Precision]) -> list[float]:
    """A table's cells for some precisions, by name, from its JSON."""
    data = table.to_dict()
    rows = dict(zip(data["layers"], data["values"], strict=True))
    return [rows[name][data["precisions"].index(str(p))] for name, p in precisions.items()]


def kl_by_hand(model: nn.Module, quantized: nn.Module, images: Tensor) -> float:
    """KL divergence per example, by torch's own loss."""
    with torch.no_grad():
        p, q = (net(images).double().log_softmax(1) for net in (model, quantized))
    loss = nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    return float(loss)


def all_held_out() -> Tensor:
    """The demo's held-out images."""
    return torch.cat([images for images, _ in demo.held_out()])


@final
@dataclass(frozen=True)
class Untouched(SensitivityEstimator):
    """An estimator that stands for hours of work, which must not begin."""

    name: ClassVar[str] = "untouched"
    summary: ClassVar[str] = "fails"

    def estimate(self, on: Estimation) -> Sensitivity:
        """See the base."""
        raise AssertionError("the search began")


def test_limits_hold_by_the_files(result: mpq.SearchResult, saved_result: Path) -> None:
    """Sums over the written table and the written formats stay within both limits."""
    rows = rows_of(saved_result / "table.csv")
    data = json.loads((saved_result / "assignment.json").read_text())
    limits = {budget["resource"]: budget["limit"] for budget in data["metadata"]["budgets"]}
    layers = data["layers"]

    size = sum(float(row["weight_bytes"]) for row in rows)
    latency = sum(float(row["latency_seconds"]) for row in rows)

    constant = result.cost_table("weight_bytes").constant
    assert size == packed_bytes(layers) <= limits["weight_bytes"] - constant
    assert latency <= limits["latency"]
    assert [row["precision"] for row in rows] == [layer["precision"] for layer in layers]


def test_predicted_loss_adds_up(result: mpq.SearchResult) -> None:
    """The result's loss is its layers' cells, added and as they interact; shares add up to one."""
    table, interactions = result.layer_table(), result.problem.interactions
    assert interactions is not None

    chosen = result.solution.precisions(result.problem)
    expected = cells(result.problem.loss, chosen)
    columns = [result.problem.loss.precisions.index(p) for p in chosen.values()]
    together = interactions.factor[:, range(len(columns)), columns].sum(axis=1, dtype=float)
    share = interactions.shrinkage

    assert 0 < share < 1
    assert result.solution.loss == pytest.approx(
        (1 - share) * 0.5 * (together**2).mean() + share * sum(expected)
    )
    assert table["predicted_loss_nats"].tolist() == expected
    assert table["predicted_loss_share"].sum() == pytest.approx(1)
    assert table["latency_share"].sum() == pytest.approx(1)
    besides = 4328 / result.comparison("result").costs["weight_bytes"]  # 1,082 biases
    assert table["weight_bytes_share"].sum() == pytest.approx(1 - besides)


def test_the_result_has_a_bound(result: mpq.SearchResult) -> None:
    """With interactions it is proved too; a solver that shares no bound with it agrees."""
    problem, solution = result.problem, result.solution
    assert problem.interactions is not None

    other = mpq.SOLVERS.build("outer-approximation:gap=0.01").solve(problem)

    assert solution.status is Status.OPTIMAL
    assert (solution.bound, solution.gap) == (solution.loss, 0.0)
    assert other.bound is not None
    assert other.bound <= solution.loss <= other.loss
    assert other.loss <= other.bound / 0.99


def test_an_additive_result_is_proved() -> None:
    """The integer program takes the sum over layers: optimal, bound equal to the loss, no gap."""
    solution = quick(solver="ilp").solution

    assert solution.status is Status.OPTIMAL
    assert solution.gap == pytest.approx(0, abs=1e-6)
    assert solution.bound == pytest.approx(solution.loss, rel=1e-6)


def test_no_single_change_is_better(result: mpq.SearchResult) -> None:
    """No layer can take another precision that loses less while both limits hold."""
    problem, chosen = result.problem, result.solution.columns
    assert chosen is not None

    better = []
    for row, layer in enumerate(problem.loss.layers):
        for column in range(len(problem.loss.precisions)):
            other = chosen.copy()
            other[row] = column
            if problem.is_feasible(other) and problem.loss_of(other) < result.solution.loss:
                better.append((layer, column))

    assert better == []


def test_the_comparison_has_original_result_and_uniform(result: mpq.SearchResult) -> None:
    """Each row is measured; the original is itself, up to the folding of BatchNorm."""
    labels = [row.label for row in result.comparisons]
    original = result.comparison("original")

    assert labels == ["original", "result", "w2a8", "w4a4", "w4a8", "w8a8"]
    assert original.measured.divergence < 1e-9
    assert original.measured.accuracy == pytest.approx(0.992)
    stored = demo.make_net().state_dict().values()
    assert original.costs["weight_bytes"] == sum(x.nbytes for x in stored)
    assert all(row.measured.num_examples == 500 for row in result.comparisons)
    assert result.measured == result.comparison("result").measured


def test_an_unknown_row_of_the_comparison(result: mpq.SearchResult) -> None:
    """A precision that was no candidate is answered with those that were."""
    with pytest.raises(UnknownNameError, match=r"no row of the comparison 'w5a8'.*w8a8"):
        result.comparison("w5a8")


def test_a_better_network_than_uniform_at_the_same_size() -> None:
    """The search is worth it: in the bytes of w4a8, below .7 of it with the same rounding."""
    found = search(
        demo.make_net(),
        Calibration(demo.calibration, stop=128),
        limits=["weight_bytes=1x:w4a8"],
        candidates=["w2a8", "w3a8", "w4a8", "w5a8", "w6a8"],
        held_out=demo.held_out,
    )

    mixed, uniform = found.comparison("result"), found.comparison("w4a8")

    assert mixed.costs["weight_bytes"] <= uniform.costs["weight_bytes"]
    assert mixed.measured.divergence < 0.7 * uniform.measured.divergence


def test_apply_is_what_was_measured(result: mpq.SearchResult) -> None:
    """The applied network has the KL that the search reports, by torch's own divergence."""
    model, images = demo.make_net(), all_held_out()

    by_hand = kl_by_hand(model, mpq.quantize(model, result.assignment), images)

    assert by_hand == pytest.approx(result.measured.divergence, rel=1e-4)


def test_evaluate_is_what_was_measured(result: mpq.SearchResult, saved_result: Path) -> None:
    """``mpq.evaluate`` with the assignment's files alone gives the search's numbers."""
    assignment = mpq.Assignment.load(saved_result / "assignment.json")

    measured = mpq.evaluate(demo.make_net(), assignment, demo.held_out)

    assert measured["quantized"].divergence == pytest.approx(result.measured.divergence, rel=1e-6)
    assert measured["quantized"].accuracy == result.measured.accuracy
    assert measured["original"].divergence == 0


def test_the_frontier(result: mpq.SearchResult) -> None:
    """Costs rise, losses fall, other budgets hold, and sums over the tables say the same."""
    frontier = result.frontier("latency", num_points=4)
    table, size = result.cost_table("latency"), result.cost_table("weight_bytes")
    (limit,) = (b.limit for b in result.problem.budgets if b.resource == "weight_bytes")

    costs = [point.cost for point in frontier.points]
    losses = [point.loss for point in frontier.points]
    sums = [sum(cells(table, point.precisions)) for point in frontier.points]
    sizes = [sum(cells(size, point.precisions)) for point in frontier.points]

    assert frontier.unit == "seconds"
    assert len(costs) >= 3
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert costs == pytest.approx(sums)
    assert all(used <= limit - size.constant for used in sizes)
    assert [point.label for point in frontier.others] == ["result", "w2a8", "w4a4", "w4a8", "w8a8"]


def test_the_frontier_passes_the_result(result: mpq.SearchResult) -> None:
    """No frontier point is at once cheaper and better than the answer, nor the reverse."""
    frontier = result.frontier("weight_bytes", num_points=5)
    chosen = frontier.others[0]

    cheaper = [point for point in frontier.points if point.cost <= chosen.cost]

    assert chosen.loss == pytest.approx(result.solution.loss)
    assert all(point.loss >= chosen.loss - 1e-12 for point in cheaper)


def test_the_frontier_can_be_measured(result: mpq.SearchResult) -> None:
    """Measured losses beside the predicted: the last point is the best and measured as such."""
    task = mpq.Task(demo.make_net(), demo.calibration, demo.held_out, "cortex-m7")
    session = Session.of(task)
    frontier = session.measured(result.frontier("weight_bytes", num_points=2))

    measured = [point.measured for point in frontier.points]

    assert all(m is not None and m.num_examples == 500 for m in measured)
    assert measured[-1] is not None
    assert measured[-1].divergence < 0.01


def test_a_frontier_over_an_unknown_resource(result: mpq.SearchResult) -> None:
    """A misspelled resource is answered with the closest one."""
    with pytest.raises(UnknownNameError, match=r"'latencies'; did you mean 'latency'\?"):
        result.frontier("latencies")


def test_a_frontier_has_two_points(result: mpq.SearchResult) -> None:
    """Fewer make no frontier."""
    with pytest.raises(mpq.InputError, match="at least 2 points; got 1"):
        result.frontier(num_points=1)


def test_examples_are_held_out_where_none_are_given() -> None:
    """The last quarter is measured on, and nothing of it is calibrated with."""
    images = torch.cat([x for x, _ in demo.calibration()])[:64]
    model = demo.make_net()

    split = quick(held_out=None, rounding="auto")
    asked = {**QUICK, "held_out": [images[48:]], "rounding": "auto"}
    apart = search(model, [images[:48]], **asked)

    assert split.measured.num_examples == 16
    assert split.measured.divergence == pytest.approx(
        kl_by_hand(model, mpq.quantize(model, split.assignment), images[48:]), rel=1e-4
    )
    assert split.assignment.precisions == apart.assignment.precisions
    assert split.solution.loss == pytest.approx(apart.solution.loss, rel=1e-5)


def test_one_example_cannot_be_split() -> None:
    """With a single example there is nothing to hold out, and the error says what to give."""
    with pytest.raises(mpq.InputError, match="1 example cannot be split; give more, or held-out"):
        search(demo.make_net(), Calibration(demo.calibration, stop=1), limits=["latency=1ms"])


def test_fixed_layers() -> None:
    """A glob fixes all layers that it matches, also to a precision that nobody else may take."""
    found = quick(fix={"blocks.0.*": "w8a8", "*depthwise*": "w6a8", "head": "w4a8"})

    precisions = {name: str(p) for name, p in found.assignment.precisions.items()}
    others = {p for n, p in precisions.items() if "depthwise" not in n}

    assert {p for n, p in precisions.items() if n.startswith("blocks.0.")} == {"w8a8"}
    assert {p for n, p in precisions.items() if "depthwise" in n} == {"w6a8"}
    assert precisions["head"] == "w4a8"
    assert others == {"w4a8", "w8a8"}


def test_candidates_of_single_layers() -> None:
    """Layers with candidates of their own take these; the others never do."""
    found = quick(allow={"head": ["w2a8", "w3a8"], "stem*": ["w5a8"]})

    precisions = {name: str(p) for name, p in found.assignment.precisions.items()}
    others = {p for n, p in precisions.items() if n not in ("head", "stem.conv")}

    assert precisions["head"] in ("w2a8", "w3a8")
    assert precisions["stem.conv"] == "w5a8"
    assert others <= {"w4a8", "w8a8"}


def test_tied_layers() -> None:
    """Layers that one glob matches share a precision; the tie is in the JSON."""
    found = quick(tie=["*.depthwise.conv", "blocks.[13].*"])

    precisions = found.assignment.precisions
    ties = json.loads(found.assignment.to_json())["ties"]
    depthwise = [name for name in precisions if name.endswith("depthwise.conv")]

    assert len(depthwise) == 3
    assert depthwise in ties
    assert all(len({str(precisions[name]) for name in tie}) == 1 for tie in ties)


def test_layers_that_read_one_tensor_are_tied() -> None:
    """A block's first convolution and its shortcut share a precision, unless that is not wanted."""
    pair = ("blocks.1.first.conv", "blocks.1.shortcut.conv")

    tied, free = quick(), quick(find_ties=False)

    assert pair in tied.assignment.ties
    assert free.assignment.ties == ()


def test_excluded_layers_stay_as_they_are() -> None:
    """Excluded layers are in no table, and keep their weights."""
    model = demo.make_net()

    found = quick(exclude=["head", "stem.*"])
    head = mpq.quantize(model, found.assignment).get_submodule("head")

    assert not {"head", "stem.conv"} & set(found.assignment.precisions)
    assert len(found.assignment.layers) == 16
    assert torch.equal(head.get_parameter("weight"), model.get_submodule("head").weight)  # type: ignore[arg-type]


def test_only_included_layers_are_quantized() -> None:
    """With ``include``, everything else stays as it is."""
    found = quick(include=["blocks.4.*", "head"], exclude=["*depthwise*"], **NARROW)

    assert list(found.assignment.precisions) == [
        "blocks.4.expand.conv",
        "blocks.4.project.conv",
        "head",
    ]


def test_a_limit_relative_to_a_precision_that_is_no_candidate() -> None:
    """``0.4x:fp16`` is of two bytes per weight and the rest, though no layer may take fp16."""
    found = quick(limits=["weight_bytes=0.4x:fp16"])

    weights = sum(math.prod(x.weight_shape) for x in found.assignment.layers)

    assert found.problem.budgets[0].limit == pytest.approx(0.4 * (2 * weights + 4328))
    assert [str(p) for p in found.problem.loss.precisions] == ["w4a8", "w8a8"]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (None, ["w2a8", "w3a8", "w4a4", "w4a8", "w5a8", "w6a8", "w8a8"]),
        ("cortex-m7", ["w2a8", "w4a4", "w4a8", "w8a8"]),
        ("nvidia-h100", ["w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w8a8"]),
    ],
)
def test_default_precisions_are_those_of_the_device(
    device: str | None, expected: list[str]
) -> None:
    """Without a wish, the candidates are the usual ones that the device runs."""
    options = {"candidates": None, "sensitivity": "weight-error", "include": ["head"]}
    found = quick(device=device, **options, **NARROW)

    assert [str(p) for p in found.problem.loss.precisions] == expected


def test_a_precision_that_the_device_lacks() -> None:
    """A wish that the device cannot fulfil is refused by name, not dropped."""
    with pytest.raises(mpq.InputError, match="nvidia-h100 runs no layer at w4a4"):
        quick(device="nvidia-h100", candidates=["w4a4", "w8a8"])


def test_precisions_can_be_objects() -> None:
    """Strings and ``Precision`` mean the same, and so do a device's name and its profile."""
    objects = [mpq.Precision.parse("w4a8"), mpq.Precision.parse("w8a8")]

    by_name = quick(device="edge-npu", sensitivity="weight-error")
    by_object = quick(
        device=mpq.load_device("edge-npu"),
        candidates=objects,
        sensitivity=mpq.ESTIMATORS.build("weight-error"),
        solver=mpq.SOLVERS.build("auto"),
    )

    assert by_object.assignment.to_json() == by_name.assignment.to_json()


@pytest.mark.parametrize("sensitivity", QUICK_ESTIMATORS)
def test_every_estimator_end_to_end(sensitivity: str) -> None:
    """Each gives a feasible answer that is far closer to the original than chance."""
    found = quick(sensitivity=sensitivity, include=["blocks.[23].*", "head"], **NARROW)

    assert found.solution.columns is not None
    assert found.problem.is_feasible(found.solution.columns)
    assert found.solution.status is Status.OPTIMAL
    assert found.assignment.metadata.estimator == sensitivity.partition(":")[0]
    assert found.measured.divergence < 0.1


def test_every_estimator_was_tried() -> None:
    """The list above is the registry's."""
    tried = {text.partition(":")[0] for text in QUICK_ESTIMATORS}

    assert tried == set(mpq.ESTIMATORS.names())


def test_interactions_with_the_evolutionary_solver() -> None:
    """The quadratic loss is minimised within the limit, no worse than the additive answer is."""
    found = quick(
        sensitivity="sketch",
        solver="evolutionary:num_trials=60,population_size=10",
    )
    additive = mpq.SOLVERS.build("ilp").solve(found.problem.additive())

    layers = json.loads(found.assignment.to_json())["layers"]
    assert found.problem.interactions is not None
    assert additive.columns is not None

    assert packed_bytes(layers) <= found.problem.budgets[0].limit
    assert found.solution.status is Status.FEASIBLE
    assert found.solution.bound is None
    assert found.solution.loss <= found.problem.loss_of(additive.columns) + 1e-12


def test_the_integer_program_takes_the_additive_table() -> None:
    """As if there were no interactions; nothing is refused."""
    found = quick(sensitivity="sketch:interactions=true", solver="ilp")

    plain = quick(sensitivity="sketch:interactions=false", solver="ilp")
    assert found.problem.interactions is None
    assert found.assignment.to_json() == plain.assignment.to_json()


def test_the_default_takes_interactions() -> None:
    """``auto`` solves what the sketch says of layers together, by branch and bound."""
    found, named = quick(), quick(sensitivity="auto", solver="branch-and-bound")

    assert found.problem.interactions is not None
    # It names, in brackets, what solves the additive part where that is all that there is.
    assert found.solution.solver.startswith("branch-and-bound")
    assert found.solution.solver == named.solution.solver
    assert found.assignment.to_json() == named.assignment.to_json()


def test_the_model_is_left_as_found() -> None:
    """Numbers, gradients, modes, hooks, requires_grad and the random state are as before."""
    model = demo.make_net()
    model.get_parameter("head.weight").requires_grad_(False)
    model.get_parameter("head.bias").grad = torch.ones(10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kept = dict(model.named_parameters())
    torch.manual_seed(5)
    state = torch.get_rng_state()

    search(model, EXAMPLES, **{**QUICK, "rounding": "auto"})

    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert all(kept[name] is parameter for name, parameter in model.named_parameters())
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["head.bias"]
    assert model.get_parameter("head.bias").grad.sum() == 10  # type: ignore[union-attr]
    assert not any(m.training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_file_in_another_process() -> None:
    """No time, no path, no order of a set gets into ``assignment.json``."""
    code = (
        "import torch, mpq; from mpq import Calibration, demo;"
        f"torch.set_num_threads({torch.get_num_threads()});"
        "task = mpq.Task(demo.make_net(), Calibration(demo.calibration, stop=64),"
        "Calibration(demo.held_out, stop=32), candidates=['w4a8', 'w8a8'],"
        "ranges=mpq.Ranges('minmax', 'minmax'), seed=3);"
        "r = mpq.search(task, ['weight_bytes=0.75x:w8a8']);"
        "print(r.assignment.to_json(), end='')"
    )

    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    here = quick(seed=3, rounding="auto").assignment.to_json()

    assert there == here


def test_another_seed_draws_other_signs() -> None:
    """The seed reaches the estimator and the record."""
    first, second = (quick(seed=seed, include=["head"], **NARROW) for seed in (0, 1))

    assert (first.assignment.metadata.seed, second.assignment.metadata.seed) == (0, 1)
    assert first.solution.loss != second.solution.loss


def test_infeasible_says_the_smallest_reachable_value() -> None:
    """One budget: its limit, what everything at the smallest precision needs, the difference."""
    with pytest.raises(mpq.InfeasibleError) as caught:
        quick(limits=["weight_bytes=1KiB"], sensitivity="weight-error")

    message = str(caught.value)
    assert message.startswith("infeasible: no assignment meets the budgets. weight_bytes: ")
    assert "limit 1024 bytes, smallest reachable 44416: 43392 bytes too much" in message
    assert message.endswith(
        "what is not in the layers takes 4328 bytes at any precision, more than the limit by itself"
    )


def test_infeasible_names_the_budget_that_binds() -> None:
    """Of two budgets, the one that can be met alone is told from the one that cannot."""
    with pytest.raises(mpq.InfeasibleError) as caught:
        quick(
            limits=["latency=50ms", "weight_bytes=1KiB"],
            device="cortex-m7",
            sensitivity="weight-error",
        )

    message = str(caught.value)
    assert re.search(r"latency: limit 0.05 seconds, .*: can be met alone", message)
    assert re.search(r"weight_bytes: limit 1024 bytes, .*: 43392 bytes too much", message)


def test_infeasible_says_what_budgets_do_to_each_other() -> None:
    """Small weights are slow on a microcontroller: each limit can be met, both together cannot."""
    with pytest.raises(mpq.InfeasibleError) as caught:
        quick(
            limits=["latency=4ms", "weight_bytes=48KiB"],
            device="cortex-m7",
            sensitivity="weight-error",
        )

    message = str(caught.value)
    latency, size = message.partition("meets the budgets. ")[2].split("; ")
    assert re.fullmatch(
        r"latency: limit 0.004 seconds, smallest reachable 0.0039\d+ \(0.004\d+ while the other "
        r"budgets hold\): 0.0\d+ seconds too much",
        latency,
    )
    assert re.fullmatch(
        r"weight_bytes: limit 49152 bytes, smallest reachable 44416 \(\d+ while the other budgets "
        r"hold\): \d+ bytes too much\. latency and weight_bytes cannot be met together",
        size,
    )


def test_infeasible_with_one_budget_speaks_of_no_other() -> None:
    """Rounding in the sums must not look like a second budget."""
    with pytest.raises(mpq.InfeasibleError, match=r"energy: limit 1e-12 joules") as caught:
        quick(limits=["energy=1pJ"], device="edge-npu", include=["blocks.[0-3].*"])

    assert "other budgets" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"limits": []}, mpq.InputError, "at least one limit, such as latency=0.6x:w8a8"),
        ({"limits": ["latency=1ms"]}, mpq.InputError, "latency needs a device"),
        ({"limits": ["size=1KiB"]}, UnknownNameError, "'size'"),
        ({"limits": ["weight_bytes=1ms"]}, LimitError, "unit 'ms' does not measure bytes"),
        ({"limits": ["weight_bytes"]}, LimitError, "'weight_bytes' is not a limit: write"),
        (
            {"limits": ["weight_bytes=1KiB", "weight_bytes=2KiB"]},
            LimitError,
            "weight_bytes has 2 limits; give one",
        ),
        (
            {"limits": ["latency=0.5x:fp8"], "device": "cortex-m7"},
            LimitError,
            "cannot run at fp8.*choose another reference or give an absolute limit",
        ),
        (
            {"fix": {"heads": "w8a8"}},
            UnknownNameError,
            r"no layer for fix \(--fix\) 'heads'.*'head'",
        ),
        ({"fix": {"head": "w8b8"}}, mpq.InputError, "'w8b8' is not a precision"),
        (
            {"fix": {"head": "w3a8"}, "device": "cortex-m7"},
            mpq.InputError,
            "no precision is left for 'head'|cortex-m7 runs no layer at w3a8",
        ),
        ({"tie": ["layer*"]}, UnknownNameError, r"no layer for tie \(--tie\) 'layer\*'"),
        ({"exclude": ["*"]}, mpq.InputError, "no quantizable layer, or all are excluded"),
        ({"batch_size": 0, "device": "cortex-m7"}, mpq.InputError, "batch size is at least 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_the_work(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Whatever can be known beforehand is said before an estimator runs."""
    with pytest.raises(error, match=message):
        quick(sensitivity=Untouched(), **changes)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Callbacks are told the names of what is done; who looks at them is theirs to say."""
    kept = Kept()
    quick(callbacks=[kept], rounding="auto")

    assert "output sketch" in [event.work for event in kept.of(Progressed)]
    assert capsys.readouterr() == ("", "")


def test_an_error_in_the_users_model_reaches_the_caller() -> None:
    """What the user's own code raises is not wrapped."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 2)

        def forward(self, x: Tensor) -> NoReturn:
            raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        search(Broken().eval(), EXAMPLES, **QUICK)


@pytest.mark.parametrize(
    ("example", "weights", "num_layers", "examples", "most"),
    [
        ("resnet20_cifar10", "cifar10/resnet20.safetensors", 20, 16, 0.3),
        ("vit_mnist", "mnist/vit_mnist.safetensors", 26, 16, 0.02),
        ("llama_stories", "llm/stories260K.fp32.safetensors", 37, 2, 0.3),
    ],
    ids=["resnet", "vit", "llama"],
)
def test_a_published_network(
    example: str,
    weights: str,
    num_layers: int,
    examples: int,
    most: float,
    data_dir: Path,
    root: Path,
) -> None:
    """Real weights, weight-only and weight-and-activation candidates, two limits: all hold."""
    spec = str(root / "examples" / f"{example}.py")
    model = load_model(f"{spec}:make_net", data_dir / weights)
    data, held_out = (load_callable(f"{spec}:{name}") for name in ("calibration", "held_out"))

    found = search(
        model,
        Calibration(data, stop=examples),
        limits=["weight_bytes=0.7x:w8", "bit_operations=0.6x:w8"],
        candidates=["w4", "w8", "w4a8", "w8a8"],
        held_out=Calibration(held_out, stop=2 * examples),
        ranges=mpq.Ranges("minmax", "minmax"),
    )

    table = found.layer_table()
    whole = found.cost_table("weight_bytes").to_pandas()["w8a32"].sum()
    operations = sum(
        layer.macs * p.weight.number.bits * p.activation.number.bits
        for layer, p in zip(found.layers, found.assignment.precisions.values(), strict=True)
    )
    macs = sum(layer.macs for layer in found.layers)
    assert len(table) == num_layers
    constant = found.cost_table("weight_bytes").constant
    assert table["weight_bytes"].sum() + constant <= 0.7 * (whole + constant)
    assert operations <= 0.6 * macs * 8 * 32
    assert len(set(table["precision"])) > 1
    assert found.measured.divergence < most
    assert found.measured.num_examples == 2 * examples
