"""The user's own judge: asked of whole networks, made best, kept, and refused where it is none."""

import copy
import itertools
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import DataError, InputError, ScoreError
from mpq.quantization.precision import ORIGINAL
from mpq.quantization.quantizer import quantized
from mpq.sensitivity import ESTIMATORS
from mpq.workflows.asked_score import in_precisions
from mpq.workflows.score import Judge, Score
from mpq.workflows.sentences import answer_sentences
from mpq.workflows.setup import Prepared

CANDIDATES = ("w2", "w4", "w8")


def net() -> nn.Sequential:
    """Three layers, of two inputs and three classes."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers).eval()


def data(seed: int = 1, count: int = 24) -> list[tuple[Tensor, Tensor]]:
    """A batch with classes."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=draws)
    return [(x, torch.randint(0, 3, (count,), generator=draws))]


def middle(network: nn.Module) -> Tensor:
    """How far the layer in the middle is from the original: only its weights matter to it."""
    original: Any = net()[2]
    changed: Any = network.get_submodule("2")
    difference: Tensor = (changed.weight - original.weight).abs().sum()
    return difference


def task(score: Any = None, **options: Any) -> mpq.Task:
    """With weights to nearest."""
    known: dict[str, Any] = {"candidates": CANDIDATES, "rounding": "nearest"}
    return mpq.Task(net(), data(), data(2), score=score, **known | options)


def search(asked: mpq.Task, limits: Any = (), **options: Any) -> mpq.SearchResult:
    """By the estimator that takes no pass."""
    return mpq.search(asked, limits, **{"sensitivity": "weight-error"} | options)


LOWER = Score.of(middle, higher_is_better=False)


def test_every_network_that_is_measured_has_its_score(tmp_path: Path) -> None:
    """Original, answer and uniform precisions; in the files as well."""
    result = search(task(LOWER), ["weight_bytes=0.85x:w8"])
    result.save(tmp_path)

    scores = {row.label: row.measured.score for row in result.comparisons}
    assert scores["original"] == 0
    assert scores["w2a32"] > scores["w4a32"] > scores["w8a32"] > 0  # type: ignore[operator]
    loaded = mpq.load(tmp_path)
    assert {row.label: row.measured.score for row in loaded.comparisons} == scores
    told = loaded.assignment.metadata
    assert (told.score, told.measured_score) == (f"{__name__}:middle", scores["result"])
    assert loaded.safeguard == result.safeguard
    assert "measured_score" in loaded.comparison_table()


def test_a_solver_that_measures_makes_the_score_best() -> None:
    """Of all assignments within the budget none has a better one."""
    solver = "evolutionary:is_measured=true,num_trials=60"
    result = search(task(LOWER), ["weight_bytes=0.85x:w8"], solver=solver)

    problem, evaluator = result.problem, Prepared.of(task(LOWER)).on_held_out
    best = min(
        evaluator.measure(problem.precisions_of(columns)).score or 0.0
        for choice in itertools.product(range(3), repeat=3)
        for columns in [np.array(choice, dtype=np.intp)]
        if all(budget.is_met(columns) for budget in problem.budgets)
    )
    assert result.measured.score == pytest.approx(best)


def test_a_higher_score_is_better_where_it_is_said() -> None:
    """The same solver, and a score that is best where most is lost."""
    worst = Score.of(middle, higher_is_better=True)
    solver = "evolutionary:is_measured=true,num_trials=60"

    result = search(task(worst), ["weight_bytes=1x:w8"], solver=solver)

    assert result.measured.score == result.comparison("w2a32").measured.score


def test_measured_prices_the_score() -> None:
    """A call for every layer and precision; a layer that it does not look at costs nothing."""
    prepared = Prepared.of(task(LOWER))

    table = ESTIMATORS.build("measured:score=own").estimate(prepared.asked).table

    assert table.unit == "score"
    assert not table.values[[0, 2]].any()
    for column, precision in enumerate(prepared.candidates):
        with quantized(prepared.network, {"2": precision}, prepared.quantizer):
            expected = float(middle(prepared.network.module).detach())
        assert table.values[1, column] == pytest.approx(expected)


def test_a_score_that_is_blind_to_single_layers_is_told() -> None:
    """Two layers at 2 bits and it is worse, one and it is not: prices of 0 say nothing of all."""

    def judge(network: nn.Module) -> float:
        pairs = zip(network.parameters(), net().parameters(), strict=True)
        return float(sum(float((a - b).abs().max()) > 0.02 for a, b in pairs) > 1)

    asked = task(Score.of(judge, higher_is_better=False), candidates=("w2", "w8"))
    known: dict[str, Any] = {"sensitivity": "measured:score=own", "safeguard": False}
    solver = "evolutionary:is_measured=true,num_trials=10"

    summed = mpq.search(asked, ["weight_bytes=1x:w2"], **known)
    asking = mpq.search(asked, ["weight_bytes=1x:w2"], **known, solver=solver)

    told = "the score is 1 worse, where what it loses by single layers adds up to 0: "
    assert any(line.startswith(told) for line in answer_sentences(summed))
    lines = tuple(answer_sentences(asking))
    assert not any("single layers" in line for line in lines)
    assert any(line.startswith("measured loss: 1 of the score") for line in lines)


def test_a_uniform_precision_of_a_better_score_is_the_answer() -> None:
    """Whatever the metric says; the sentence tells both."""

    def judge(network: nn.Module) -> float:
        layers: Any = [part for part in network.modules() if isinstance(part, nn.Linear)]
        return float(all(len(part.weight.unique()) <= 24 for part in layers))

    result = search(
        task(Score.of(judge, higher_is_better=True, name="few levels")), ["weight_bytes=0.9x:w8"]
    )

    assert result.safeguard is not None
    assert result.safeguard.replaced_by == "w2a32"
    assert result.measured.score == 1
    assert "few levels: 0, of the original 0, of uniform w2a32 1" in result.safeguard.sentence


def test_a_score_may_drop_so_much() -> None:
    """Least bytes within it, measured."""
    free = search(task(LOWER), ["weight_bytes=1x:w8"])
    drop = free.comparison("w4a32").measured.score
    objective = mpq.Objective("weight_bytes", max_score_drop=drop)

    found = search(task(LOWER), objective=objective)

    assert found.measured.score is not None
    assert drop is not None
    assert found.measured.score <= drop
    bytes_of = [found.comparison(label).costs["weight_bytes"] for label in ("result", "w4a32")]
    assert bytes_of[0] <= bytes_of[1]
    with pytest.raises(InputError, match="max_score_drop needs a score"):
        search(task(), objective=objective)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (True, r"got True \(a bool\) of the network: if yes counts as 1 and no as 0, return float"),
        (np.bool_(1), "got .*a bool.* of the network: if yes counts as 1"),
        (torch.tensor(True), r"got tensor\(True\) \(a Tensor\) of the network: if yes counts"),
        (float("nan"), r"got nan \(a float\) of the network: of a network that answers nonsense"),
        (np.float32("inf"), r"got inf \(a float32\) of the network: of a network that answers"),
        pytest.param(10**400, r"got inf \(a int\) of the network: of a network", id="huge"),
        ("good", r"got 'good' \(a str\) of the network: return a float"),
        (1j, "got a complex of the network: return a float"),
        (None, r"got None \(a NoneType\) of the network: is a return missing\?"),
        (torch.zeros(2, 4), r"got a Tensor of shape \[2, 4\] of the network: return their mean"),
        (np.zeros(0), r"got a ndarray of shape \[0\] of the network: return their mean"),
        ({"map": 0.5}, "got a dict of the network: return a float"),
    ],
)
def test_a_score_is_one_number(found: Any, message: str) -> None:
    """Whatever else comes is named, with what to return instead."""
    score = Score.of(lambda _: found, True, name="judges.py:judge")
    start = r"^the score judges.py:judge \(--score\) returns one finite number; "

    with pytest.raises(ScoreError, match=start + message):
        Judge(score, mpq.Calibration(data()), net()).of(net())


@pytest.mark.parametrize(
    "found",
    [1, np.float32(1), np.int64(1), np.ones(1), torch.ones(()), torch.ones(1, 1).half(),
     torch.tensor(1), torch.ones((), requires_grad=True), Fraction(1)],
)  # fmt: skip
def test_a_number_of_any_kind_is_a_score(found: Any) -> None:
    """Of Python, NumPy or torch; a tensor or an array of one number as well."""
    said = Judge(Score.of(lambda _: found, True), mpq.Calibration(data()), net()).of(net())

    assert (type(said), said) == (float, 1.0)


def failing(network: nn.Module) -> float:
    """Wants a layer that is as it was."""
    network.train()
    if middle(network) > 0:
        raise KeyError("logits")
    network.eval()
    return 1.0


def test_an_error_of_a_score_says_that_it_is_the_scores() -> None:
    """Which, where, of which network, and what it should do; its own error is the cause."""
    asked = task(Score.of(failing, True))

    with pytest.raises(ScoreError) as caught:
        search(asked, ["weight_bytes=0.85x:w8"], sensitivity="measured:score=own")

    line = failing.__code__.co_firstlineno + 4
    assert str(caught.value) == (
        f"the score {__name__}:failing (--score) failed when it was called with a network with 2 "
        f"in w2a32: KeyError: 'logits' (test_score.py, line {line}); it takes one network, in "
        "evaluation mode and without gradients, and returns one finite number, of any quantized "
        "network"
    )
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_network_that_a_score_failed_on_is_evaluating() -> None:
    """Though the function began to train it; also where it returned."""
    judges = {"failed": failing, "left the network in training": lambda x: x.train() and 1.0}
    for message, function in judges.items():
        model: Any = net()
        with torch.no_grad():
            model[2].weight.add_(1.0)
        judge = Judge(Score.of(function, True), mpq.Calibration(data()), net())
        with pytest.raises(ScoreError, match=message):
            judge.of(model)
        assert not model.training


@pytest.mark.parametrize(
    "change",
    [lambda x: x.double(), lambda x: x[0].weight.mul_(2), lambda x: x.to("meta"),
     lambda x: setattr(x[4], "bias", nn.Parameter(x[4].bias))],
)  # fmt: skip
def test_a_score_that_changes_the_network_is_refused(change: Any) -> None:
    """Whatever is measured afterwards would be of another network."""

    def judge(network: nn.Module) -> float:
        change(network)
        return 1.0

    asked = Judge(Score.of(judge, True, "mine"), mpq.Calibration(data()), net())

    with pytest.raises(ScoreError, match=r"^the score mine .* changed the network \([04]\.[wb]"):
        asked.of(net())


@pytest.mark.parametrize(
    "change",
    [lambda x: x.weight.data.mul_(2), lambda x: x.bias.numpy().fill(0.5),
     lambda x: x.weight.data.copy_(x.weight.data.flip(0))],
)  # fmt: skip
def test_what_torch_does_not_count_is_noticed_in_every_call(change: Any) -> None:
    """Numbers that are written through ``.data`` or NumPy, be it after calls that wrote none."""
    calls, model = [], net()

    def judge(network: nn.Module) -> float:
        calls.append(network)
        if len(calls) == 2:
            change(network.get_submodule("0"))
        return 1.0

    asked = Judge(Score.of(judge, True, "mine"), mpq.Calibration(data()), net())

    assert asked.of(model, "the original network") == 1.0
    with pytest.raises(ScoreError, match=r"changed the network \(0\.(weight|bias)\)"):
        asked.of(model)


def test_a_score_that_lets_norms_learn_is_refused() -> None:
    """Though the network is in evaluation mode again, and its weights are what they were."""

    def judge(network: nn.Module) -> float:
        network.train()(torch.ones(2, 4))
        network.eval()
        return 1.0

    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    asked = Judge(Score.of(judge, True, "mine"), mpq.Calibration(data()), model)

    with pytest.raises(ScoreError, match=r"changed the network \(1\.num_batches_tracked\)"):
        asked.of(model)


def test_a_script_as_a_score_does_not_end_the_search() -> None:
    """Its exit is an error like others."""
    asked = Judge(Score.of(lambda _: sys.exit(0), True, "mine"), mpq.Calibration(data()), net())

    with pytest.raises(ScoreError, match="mine .* failed .* the network: SystemExit: 0"):
        asked.of(net())


def test_a_score_may_change_a_copy() -> None:
    """And what is no weight: a network may keep what it saw last."""

    def judge(network: Any) -> float:
        network.seen = torch.ones(2)
        return float(copy.deepcopy(network).double()[0].weight.mul_(2).dtype == torch.double)

    assert Judge(Score.of(judge, True), mpq.Calibration(data()), net()).of(net()) == 1


def test_an_error_names_few_of_many_layers() -> None:
    """And counts the others."""
    precision = mpq.Precision.parse("w4a8")

    told = in_precisions({**{f"l{i}": precision for i in range(5)}, "x": ORIGINAL})

    assert told == "a network with l0 in w4a8, l1 in w4a8, l2 in w4a8 and 2 more"
    assert in_precisions({"x": ORIGINAL}) == "the original network"


def test_a_score_that_draws_says_the_same_twice() -> None:
    """And leaves the generators where they were."""
    judge = Judge(Score.of(lambda _: torch.rand(()), True), mpq.Calibration(data()), net())
    model = net()
    torch.manual_seed(7)
    before = torch.get_rng_state()

    assert judge.of(model) == judge.of(model)
    assert torch.equal(before, torch.get_rng_state())


def test_a_cache_knows_scores_apart(tmp_path: Path) -> None:
    """What one said is not taken for another's; the same one is not asked again."""
    calls: list[nn.Module] = []

    def counted(network: nn.Module) -> float:
        calls.append(network)
        return 1.0

    first = Score.of(counted, True)
    search(task(first, cache=tmp_path), ["weight_bytes=0.85x:w8"])
    once = len(calls)
    search(task(first, cache=tmp_path), ["weight_bytes=0.85x:w8"])
    assert len(calls) == once
    other = search(task(LOWER, cache=tmp_path), ["weight_bytes=0.85x:w8"])
    assert other.comparison("w2a32").measured.score != 1.0


def test_a_cache_knows_the_scores_of_estimates_apart(tmp_path: Path) -> None:
    """Prices by one score are not those by another, of which the estimator knows nothing."""
    made, seen = ("measured:score=own", "decoupled:groups=*=own"), []
    for score in (Score.of(middle, higher_is_better=False), Score.of(middle, True), None):
        asked = task("sqnr" if score is None else score, cache=tmp_path)
        seen.append([search(asked, ["weight_bytes=0.85x:w8"], sensitivity=name) for name in made])

    tables = [[found.problem.loss.values.tolist() for found in pair] for pair in seen]
    assert all(own == decoupled for own, decoupled in tables)
    assert tables[0] != tables[1]
    assert tables[0] != tables[2]


def test_an_assignment_is_judged_by_itself() -> None:
    """``mpq.evaluate`` says what the search did."""
    result = search(task(LOWER), ["weight_bytes=0.85x:w8"])
    found = mpq.evaluate(net(), result.assignment, data(2), score=LOWER)
    assert found["quantized"].score == pytest.approx(result.measured.score)
    assert found["original"].score == 0


def test_estimators_are_compared_by_the_score() -> None:
    """Which of them predicts it: the one that asks it, where losses add up."""
    compared = mpq.compare(
        task(LOWER), ["weight_bytes=0.85x:w8"], estimators=["measured:score=own"], num_random=8
    )
    assert compared.unit == "score_drop"
    (score,) = compared.scores
    measured = [trial.divergence for trial in compared.trials]
    np.testing.assert_allclose(score.predicted, measured, rtol=1e-5)


def outputs(module: nn.Module) -> tuple[Any, Any]:
    """Of the network, and classes."""
    x, y = data()[0]
    with torch.no_grad():
        return module(x).double().numpy(), y.numpy()


def test_scores_on_targets_are_those_of_others() -> None:
    """Beside scikit-learn, on a network that is right as often as chance."""
    metrics = pytest.importorskip("sklearn.metrics")
    logits, classes = outputs(net())
    probabilities = torch.from_numpy(logits).softmax(-1).numpy()
    expected = {
        "accuracy": metrics.accuracy_score(classes, logits.argmax(-1)),
        "top-5": 1.0,
        "perplexity": np.exp(metrics.log_loss(classes, probabilities)),
        "miou": metrics.jaccard_score(classes, logits.argmax(-1), average="macro"),
    }
    for name, value in expected.items():
        judge = Judge(Score.built_in(name), mpq.Calibration(data()), net())
        assert judge.original == pytest.approx(value), name


def image_net() -> nn.Sequential:
    """Images to images."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).eval()


def structure(known: Any, found: Any, span: float) -> float:
    """Structural similarity by its formula, windows of 7 x 7 (Wang et al. 2004), as a mean."""
    a, b = (
        np.lib.stride_tricks.sliding_window_view(x.astype(float), (7, 7), axis=(2, 3)).reshape(
            *x.shape[:2], -1, 49
        )
        for x in (known, found)
    )
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    shared = ((a - mean_a[..., None]) * (b - mean_b[..., None])).sum(-1) / 48
    one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
    alike = (2 * mean_a * mean_b + one) * (2 * shared + two)
    most = (mean_a**2 + mean_b**2 + one) * (a.var(-1, ddof=1) + b.var(-1, ddof=1) + two)
    return float((alike / most).mean())


def test_scores_beside_the_original_are_those_of_others() -> None:
    """Decibels by hand, and by scikit-image where it is installed."""
    images = [torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    original, changed = image_net(), image_net()
    with torch.no_grad():
        changed.get_parameter("0.weight").add_(0.01)
        known, found = (np.concatenate([m(x).numpy() for x in images]) for m in (original, changed))

    def of(name: str) -> float:
        return Judge(Score.built_in(name), mpq.Calibration(images), original).of(changed)

    noise = np.mean((found.astype(float) - known) ** 2)
    assert of("sqnr") == pytest.approx(10 * np.log10(np.mean(known.astype(float) ** 2) / noise))
    span = float(known.max()) - float(known.min())
    assert of("psnr") == pytest.approx(10 * np.log10(span**2 / noise))
    metrics = pytest.importorskip("skimage.metrics")
    assert of("psnr") == pytest.approx(
        metrics.peak_signal_noise_ratio(known, found, data_range=span)
    )
    each = [
        metrics.structural_similarity(a, b, channel_axis=0, data_range=span)
        for a, b in zip(known, found, strict=True)
    ]
    assert of("ssim") == pytest.approx(np.mean(each), rel=1e-5)
    assert of("ssim") == pytest.approx(structure(known, found, span), rel=1e-5)
    assert Judge(Score.built_in("psnr"), mpq.Calibration(images), original).original == 200


def test_targets_are_needed_where_they_are() -> None:
    """It says what to yield."""
    (batch,) = data()
    with pytest.raises(DataError, match="this score needs targets"):
        _ = Judge(Score.built_in("accuracy"), mpq.Calibration([batch[0]]), net()).original


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "f1"], "there is no score 'f1'"),
        (["--score", "x.y:z"], "--score-better says which"),
        (["--score", "accuracy", "--score-better", "higher"], "says by itself"),
        (["--score-cost", "3s"], "go with --score"),
        (["--score", "accuracy", "--score-cost", "soon"], "not a time"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], message: str) -> None:
    """On the command line, before anything is loaded."""
    result = CliRunner().invoke(app, ["search", "--limit", "effective_bits=3", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_the_command_line_asks_a_function_of_the_users(tmp_path: Path, small_demo: None) -> None:
    """In a search, and of its assignment."""
    file = tmp_path / "judges.py"
    file.write_text(
        "from mpq import demo\n\n\ndef judge(network):\n"
        "    x, y = next(iter(demo.held_out()))\n"
        "    return float((network(x).argmax(-1) == y).float().mean())\n"
    )
    asked = ["--score", f"{file}:judge", "--score-better", "higher"]
    found = CliRunner().invoke(
        app,
        ["search", "--limit", "effective_bits=5", "--rounding", "nearest", *asked,
         "--sensitivity", "weight-error", "--output", str(tmp_path / "run")],
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    printed = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), *asked])
    scores = {name: row["score"] for name, row in json.loads(printed.stdout).items()}
    told = json.loads((tmp_path / "run" / "assignment.json").read_text())["metadata"]
    assert scores["quantized"] == pytest.approx(told["measured_score"])
    assert told["score"] == f"{file}:judge"
