"""Which estimator to trust: ``mpq.compare`` against predictions whose quality is known."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

import mpq
from mpq import demo
from mpq.errors import InputError
from mpq.quantization.precision import Precision
from mpq.report.estimators import EstimatorComparison
from mpq.report.rank_agreement import RankAgreement
from mpq.report.trials import Score, Trial
from mpq.workflows.compare import _Comparison
from mpq.workflows.evaluate import Reference
from tests.tasks import task_of

LIMITS = ["weight_bytes=0.9x:w4", "weight_bytes=1x:w6"]


def network() -> nn.Module:
    """Three layers, the middle one with small weights, so that layers differ."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)
    )
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(0.1)
    return model.eval()


def examples(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two batches with targets."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator))
        for n in (20, 12)
    ]


def compare(**options: Any) -> EstimatorComparison:
    """A small comparison."""
    arguments: dict[str, Any] = {
        "limits": LIMITS,
        "estimators": ("sketch", "measured", "weight-error"),
        "candidates": ["w2", "w3", "w4", "w6", "w8"],
        "num_random": 8,
        "held_out": examples(1),
    }
    task, own = task_of(network(), examples(0), {**arguments, **options})
    return mpq.compare(task, **own)


@pytest.fixture(scope="module")
def found() -> EstimatorComparison:
    """Shared by the tests that only look at it."""
    return compare()


def test_trials_are_measured_on_held_out_examples(found: EstimatorComparison) -> None:
    """Each divergence is that of the network put into those precisions by hand."""
    reference = Reference(network(), mpq.Calibration(examples(1)))
    names = ("0", "2", "4")
    candidates = [Precision.parse(text) for text in ("w2", "w3", "w4", "w6", "w8")]

    for trial in found.trials[:3]:
        chosen = {n: candidates[c] for n, c in zip(names, trial.columns, strict=True)}
        task = mpq.Task(
            network(), examples(0), examples(1),
            candidates=["w2", "w3", "w4", "w6", "w8"], rules=mpq.Rules(fix=chosen),
        )  # fmt: skip
        result = mpq.search(task, ["weight_bytes=1x:w8"], sensitivity="weight-error")
        measured = reference.compare(mpq.quantize(network(), result.assignment))
        assert trial.divergence == pytest.approx(measured.divergence, rel=1e-6)
        assert trial.accuracy == measured.accuracy


def test_trials_are_near_their_limit(found: EstimatorComparison) -> None:
    """So many for each limit, and no more bytes than it allows."""
    assert found.limits == tuple(LIMITS)
    assert [trial.limit for trial in found.trials] == [LIMITS[0]] * 8 + [LIMITS[1]] * 8


def test_correlations_are_scipys_over_the_trials_below_max_loss(found: EstimatorComparison) -> None:
    """Over all limits together, and near one of them."""
    score = found.scores[0]
    measured = np.array([trial.divergence for trial in found.trials])
    predicted = np.array(score.predicted)
    kept = measured <= found.max_loss

    agreement = found.agreement(score)

    assert agreement.num_trials == kept.sum() >= 3
    expected = stats.spearmanr(predicted[kept], measured[kept]).statistic
    assert agreement.spearman == pytest.approx(expected)
    assert agreement.kendall == pytest.approx(
        stats.kendalltau(predicted[kept], measured[kept]).statistic
    )
    assert agreement.ratio == pytest.approx(np.median(predicted[kept] / measured[kept]))


def test_a_perfect_prediction_has_correlation_one() -> None:
    """And a wrong scale shows in the ratio only."""
    agreement = RankAgreement.of([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])

    assert (agreement.spearman, agreement.kendall, agreement.ratio) == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("rows", [[], [1.0], [1.0, 1.0, 1.0]])
def test_no_correlation_where_there_is_nothing_to_rank(rows: list[float]) -> None:
    """Fewer than three, or all equal: nan, not an error and not 1."""
    agreement = RankAgreement.of(rows, rows)

    assert np.isnan(agreement.spearman)


@pytest.mark.parametrize(
    ("predicted", "measured", "ratio"),
    [([3.0], [2.0], 1.5), ([3.0, 3.0, 3.0], [1.0, 2.0, 3.0], 1.5), ([1.0, 2.0], [0.0, 0.5], 4.0)],
)
def test_a_ratio_needs_no_ranks(
    predicted: list[float], measured: list[float], ratio: float
) -> None:
    """Fewer than three rows and equal predictions have one; no measured loss has none."""
    agreement = RankAgreement.of(predicted, measured)

    assert agreement.ratio == ratio
    assert np.isnan(agreement.spearman)
    assert np.isnan(agreement.kendall)
    assert np.isnan(RankAgreement.of(predicted, [0.0] * len(measured)).ratio)


def test_optima_are_measured_within_every_limit(found: EstimatorComparison) -> None:
    """A larger budget loses less by the estimator's own prediction; ours beats random search."""
    for score in found.scores:
        tight, loose = score.solved
        assert (tight.limit, loose.limit) == tuple(LIMITS)
        assert loose.predicted <= tight.predicted

    best = min(t.divergence for t in found.trials if t.limit == LIMITS[1])
    assert found.scores[0].solved[1].divergence <= best * 1.05


def test_costs_are_counted(found: EstimatorComparison) -> None:
    """Time in seconds and forward passes; memory where the system tells it."""
    for score in found.scores:
        assert score.seconds > 0
        assert score.forward_passes > 0
        assert score.peak_memory_bytes is None or score.peak_memory_bytes >= 0


def test_an_estimator_that_cannot_is_a_row_that_says_so() -> None:
    """The others are compared; the table and the Markdown hold the reason."""
    no_targets = [x for x, _ in examples(0)]

    found = mpq.compare(
        mpq.Task(network(), no_targets, candidates=["w4", "w8", "w2"]), LIMITS[1:],
        estimators=["weight-error", "fisher:labels=targets"], num_random=3,
    )  # fmt: skip

    error = found.scores[1].error
    assert error is not None
    assert "targets" in error
    assert error in found.to_markdown()
    assert found.scores[0].error is None
    assert found.table().set_index("estimator")["spearman"].isna()["fisher:labels=targets"]


def test_table_has_a_row_per_estimator_and_one_for_random_search(
    found: EstimatorComparison,
) -> None:
    """Best rank correlation first; the best random assignment last."""
    table = found.table()

    assert set(table["estimator"][:-1]) == {"sketch", "measured", "weight-error"}
    assert table["estimator"].iloc[-1] == "best of 8 random"
    assert table["spearman"][:-1].is_monotonic_decreasing
    best = min(t.divergence for t in found.trials if t.limit == LIMITS[0])
    assert table[f"solved_nats at {LIMITS[0]}"].iloc[-1] == best


def test_unit_that_is_not_the_measured_one_has_no_ratio(found: EstimatorComparison) -> None:
    """``relative`` numbers rank, but do not predict nats."""
    rows = found.table().set_index("estimator")["predicted_to_measured"]

    assert np.isnan(rows["weight-error"])
    assert rows["sketch"] > 0


def test_saved_files_hold_the_same_numbers(found: EstimatorComparison, tmp_path: Path) -> None:
    """CSV and JSON for programs, Markdown for a README, one picture, the page."""
    files = {path.name for path in found.save(tmp_path)}

    assert files == {
        *("estimators.csv", "estimators.json", "estimators.md", "predictions.csv"),
        *("predictions.png", "made.json", "report.html"),
    }
    assert json.loads((tmp_path / "estimators.json").read_text())["unit"] == "nats"
    rows = pd.read_csv(tmp_path / "predictions.csv")
    assert rows["sketch [nats]"].to_numpy() == pytest.approx(found.scores[0].predicted)
    *table, between, mark = (tmp_path / "estimators.md").read_text().splitlines()
    assert (len(table), between) == (2 + 4, "")
    assert re.fullmatch(r"<!-- mpq-compare-[0-9a-f]{16} -->", mark)
    assert mark[5:-4].encode() in (tmp_path / "predictions.png").read_bytes()
    assert mark[5:-4] in (tmp_path / "estimators.csv").read_text()
    assert (tmp_path / "predictions.png").read_bytes()[:4] == b"\x89PNG"


def test_picture_has_a_panel_per_estimator(found: EstimatorComparison) -> None:
    """With its name and its rank correlation, and measured losses across."""
    panels = [axes for axes in found.plot().axes if axes.get_title()]

    titles = [axes.get_title().splitlines()[0] for axes in panels]
    assert titles == ["sketch", "measured", "weight-error"]
    drawn = sum(np.size(line.get_xdata()) for line in panels[0].lines[:2])
    assert drawn == len(found.trials)


def test_a_limit_has_one_colour_in_all_panels() -> None:
    """Also where a panel has no point of a limit before it; the legend has all limits."""
    trials = tuple(Trial(limit, (0,), 0.1, None) for limit in ("a", "b"))
    scores = (Score("one", (0.0, 0.2), "nats"), Score("two", (0.1, 0.2), "nats"))
    comparison = EstimatorComparison(trials, scores, "nats", 1.0, 1.0, 4, 4)

    figure = comparison.plot()

    first, second = ({x.get_label(): x.get_color() for x in axes.lines} for axes in figure.axes[:2])
    assert first["b"] == second["b"] != second["a"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["a", "b"]
    handles = [line.get_color() for line in legend.get_lines()]
    assert handles[:2] == [second["a"], second["b"]]


def test_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are on disk are not measured again, and the answer is the same."""
    whole = compare(folder=tmp_path)
    journal = tmp_path / "measured.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:7]) + lines[7][:20])
    measured: list[Any] = []
    original = _Comparison._measured

    def row(self: Any, columns: Any) -> dict[str, Any]:
        measured.append(columns)
        return original(self, columns)

    monkeypatch.setattr("mpq.workflows.compare._Comparison._measured", row)

    again = compare(folder=tmp_path)

    assert len(measured) == sum('"columns ' in line for line in lines) - 6
    assert again.trials == whole.trials
    assert [s.predicted for s in again.scores] == [s.predicted for s in whole.scores]


def test_folder_is_resumed_by_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are named by what they measure: another restriction, budget or option finds its own."""
    # Looking for the peak collects all garbage of the process, and peaks are not compared.
    monkeypatch.setattr("mpq.workflows.compare.peak_memory_bytes", lambda run, _: (run(), None))
    options: dict[str, Any] = {
        "estimators": ["sketch:num_probes=1", "weight-error"],
        "solver": "local-search:num_restarts=0",
        "candidates": ["w2", "w4", "w8"],
        "num_random": 3,
        "ranges": mpq.Ranges("minmax", "minmax"),
        "rounding": "nearest",  # another seed's codes are others
    }
    first = compare(folder=tmp_path, **options)
    changes: list[dict[str, Any]] = [
        {"allow": {"4": ["w2", "w4"]}},
        {"limits": LIMITS[:1]},
        {"seed": 1},
        {"estimators": ["sketch:num_probes=1,temperature=3", "weight-error"]},
        {"solver": "ilp"},
    ]
    for change in changes:
        asked = {**options, **change}
        fresh, again = compare(**asked), compare(folder=tmp_path, **asked)

        assert again.trials == fresh.trials
        assert [s.predicted for s in again.scores] == [s.predicted for s in fresh.scores]
        assert [s.solved for s in again.scores] == [s.solved for s in fresh.scores]
        # Otherwise rows of the first question would do as well.
        assert [s.solved for s in fresh.scores] != [s.solved for s in first.scores]


def test_optima_can_be_refined(found: EstimatorComparison) -> None:
    """Where the estimator can; what it predicts of random assignments is the first estimate's."""
    refined = compare(refine=2)

    assert [s.predicted for s in refined.scores] == [s.predicted for s in found.scores]
    assert refined.scores[1].solved == found.scores[1].solved
    with pytest.raises(InputError, match=r"refine \(--refine\) is at least 0"):
        compare(refine=-1)


def test_folder_of_another_comparison_is_refused(tmp_path: Path) -> None:
    """Other data, other measurements: the message says what to do."""
    compare(folder=tmp_path, estimators=["weight-error"])

    with pytest.raises(InputError, match="of another measurement .*held_out.* another path"):
        compare(folder=tmp_path, estimators=["weight-error"], held_out=examples(2))


def test_same_seed_same_comparison(found: EstimatorComparison) -> None:
    """Random assignments, predictions and optima."""
    again = compare()

    assert again.trials == found.trials
    assert [s.solved for s in again.scores] == [s.solved for s in found.scores]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limits": []}, "at least one limit .--limit."),
        ({"num_random": 10**8}, "num_random .--random. is at most 10000000"),
        ({"num_random": 2}, "num_random .--random. is at least 3"),
        ({"estimators": ["skech"]}, "did you mean 'sketch'"),
        ({"limits": ["weight_bytes=0.1x:w2"]}, "smallest reachable"),
        ({"limits": ["weight_bytes=9x:w8"]}, "found no random assignment"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    """Said before anything is measured."""
    with pytest.raises(mpq.MpqError, match=message):
        compare(**options)


def test_command_line_compares_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``mpq compare`` prints the table and writes the files."""
    from typer.testing import CliRunner

    from mpq.cli.__main__ import app

    ran = CliRunner().invoke(
        app,
        ["compare", "--random", "3", "--estimator", "weight-error", "--estimator", "z-score",
         "--limit", "effective_bits=5", "--output", str(tmp_path)],
    )  # fmt: skip

    assert ran.exit_code == 0, ran.output
    assert "weight-error" in ran.output
    assert "best of 3" in ran.output
    assert "cannot run" not in ran.output
    rows = (tmp_path / "measured.jsonl").read_text().splitlines()
    assert sum(json.loads(row).get("name", "").startswith("estimator") for row in rows) == 2
    assert len(list(demo.held_out())) > 0
