"""Proxies that are evolved: on losses whose order a known formula has, and by the command."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from typer.testing import CliRunner

import mpq
from mpq.callbacks import Finished, PhaseEnded
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError, MismatchError, UnknownNameError
from mpq.report.evolved_proxy import EvolvedProxy
from mpq.report.loss_benchmark import LossBenchmark, MeasuredAssignment
from mpq.workflows.evolve_proxy import HANDCRAFTED, evolve_proxy
from tests.callbacks.listeners import Kept
from tests.recipes.reference import data, tiny

CANDIDATES = ["w2", "w3", "w4", "w8"]
LIMIT = "weight_bytes=0.9x:w4"


def task() -> mpq.Task:
    """The tiny network."""
    return mpq.Task(tiny(), data, data, candidates=CANDIDATES, rounding="nearest")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> LossBenchmark:
    """Twenty random assignments, and structured ones."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    found = mpq.compare(
        task(), [LIMIT], estimators=["weight-error"], num_random=20, max_loss=10, save_bench=file
    )
    loaded = LossBenchmark.load(file)
    assert [row.loss for row in loaded.rows[:20]] == [trial.divergence for trial in found.trials]
    return loaded


def test_the_benchmark_has_structured_assignments(bench: LossBenchmark) -> None:
    """Measured as the random ones are."""
    shapes = [row.shape for row in bench.rows]
    row = bench.rows[shapes.index("rising")]
    fixed = {n: CANDIDATES[c] for n, c in zip(bench.layers, row.columns, strict=True)}
    same = mpq.search(replace(task(), rules=mpq.Rules(fix=fixed)), ["weight_bytes=1x:w8"],
                      sensitivity="weight-error")  # fmt: skip

    assert {"random", "rising", "falling", "ends"} <= set(shapes)
    assert bench.candidates == tuple(f"{text}a32" for text in CANDIDATES)
    assert row.loss == pytest.approx(same.measured.divergence, rel=1e-6)


def test_fitness_is_the_rank_correlation_of_the_estimator(bench: LossBenchmark) -> None:
    """What the result says of a formula is what ``zero-cost:formula=`` has."""
    kept = Kept()
    found = evolve_proxy([(task(), bench)], generations=3, population=8, callbacks=[kept])
    assert [event.result for event in kept.of(Finished)] == [found]
    assert [event.phase for event in kept.of(PhaseEnded)] == ["statistics", "generations"]

    result = mpq.search(task(), ["weight_bytes=1x:w4"], sensitivity=found.estimator)
    table, rows = result.problem.loss.values, np.array([row.columns for row in bench.rows])
    predicted = table[np.arange(len(table)), rows].sum(axis=1)
    expected = spearmanr(predicted, [row.loss for row in bench.rows]).statistic
    assert found.spearman == pytest.approx((expected,))
    assert found.spearman[0] >= max(values[0] for values in found.known.values())
    assert list(found.best) == sorted(found.best)
    assert set(found.known) == set(HANDCRAFTED)
    assert sum(found.screened.values()) > 0


def test_a_loss_that_is_a_formula_is_found_again(bench: LossBenchmark) -> None:
    """Losses by a formula that evolution does not begin at: its order is found."""
    truth = mpq.search(task(), ["weight_bytes=1x:w4"],
                       sensitivity="zero-cost:formula=sum(square(a))/norm(w)")  # fmt: skip
    table = truth.problem.loss.values
    rows = tuple(
        replace(row, loss=float(table[np.arange(len(table)), row.columns].sum()))
        for row in bench.rows
    )
    made = replace(bench, rows=rows, max_loss=float("inf"))

    found = evolve_proxy([(task(), made)], generations=12, population=20)

    assert found.spearman[0] > 0.97 > max(values[0] for values in found.known.values())


def test_what_is_refused(bench: LossBenchmark) -> None:
    """Before anything is looked at."""
    with pytest.raises(InputError, match="population >= 6"):
        evolve_proxy([(task(), bench)], population=2)
    with pytest.raises(UnknownNameError, match="labels"):
        evolve_proxy([(task(), bench)], labels="mine")
    with pytest.raises(MismatchError, match="another network"):
        evolve_proxy([(task(), replace(bench, fingerprint="x"))])
    with pytest.raises(MismatchError, match="the first of them 'mine'"):
        evolve_proxy([(task(), replace(bench, layers=("mine", *bench.layers[1:])))])
    with pytest.raises(MismatchError, match="^benchmark 2 of 2 is of another .* network 5, .* '0'"):
        evolve_proxy([(task(), bench), (task(), replace(bench, fingerprint="x"))])
    with pytest.raises(InputError, match="^the benchmark has .* at least 3 have a rank"):
        evolve_proxy([(task(), replace(bench, max_loss=0.0))])


def test_one_layer_is_told_from_none() -> None:
    """No formula ranks assignments of a single layer: that is said, and no traceback."""
    only = replace(task(), rules=mpq.Rules(include=["0"]))
    found = mpq.search(only, ["weight_bytes=1x:w8"], sensitivity="weight-error")
    rows = tuple(MeasuredAssignment("", "random", (c,), 0.1 * c, None) for c in range(4))
    bench = LossBenchmark(
        found.assignment.fingerprint, found.problem.loss.layers, tuple(CANDIDATES), "kl",
        9.0, 8, rows,
    )  # fmt: skip

    with pytest.raises(InputError, match="no formula tells the layers"):
        evolve_proxy([(only, bench)], generations=1, population=6)


def test_a_formula_that_says_nothing_is_null() -> None:
    """JSON has no nan."""
    found = EvolvedProxy("sum(w)", "sampled", (0.5,), {"norm(g)": (math.nan,)}, (0.5,), 1, {}, 0)

    assert json.loads(found.to_json(), parse_constant=pytest.fail)["known"] == {"norm(g)": [None]}
    assert math.isnan(EvolvedProxy.from_json(found.to_json()).known["norm(g)"][0])


def test_its_file_is_read_again(tmp_path: Path) -> None:
    """As it was written, with the version of its format."""
    found = EvolvedProxy(
        "sum(w)", "targets", (0.5, 0.25), {"norm(g)": (0.125, 0.5)}, (0.5,), 7, {"nan": 2}, 3
    )

    (file,) = found.save(tmp_path)

    assert EvolvedProxy.load(file) == found
    assert EvolvedProxy.load(file).estimator == "zero-cost:formula=sum(w),labels=targets"
    assert json.loads(file.read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema_version": 2}, "evolved proxy of schema version 2; this mpq reads version 1"),
        ({"formula": ""}, "formula"),
        ({"labels": "mine"}, "labels"),
        ({"num_tried": -1}, "num_tried"),
        ({"more": 1}, "more"),
    ],
)
def test_other_files_are_refused(changed: dict[str, object], message: str) -> None:
    """Of another version, or not of this kind."""
    found = EvolvedProxy("sum(w)", "sampled", (0.5,), {}, (0.5,), 1, {}, 0)
    text = json.dumps({**json.loads(found.to_json()), **changed})

    with pytest.raises(FileFormatError, match=message):
        EvolvedProxy.from_json(text)
    with pytest.raises(FileFormatError, match="it has no schema_version"):
        EvolvedProxy.from_json("{}")


WORDS = ("--generations", "2", "--population", "8", "--rounding", "nearest", "--seed", "3")


def test_the_command_is_the_same_in_another_process(bench: LossBenchmark, tmp_path: Path) -> None:
    """One network for two files; the answer of a seed is one."""
    file = bench.save(tmp_path / "bench.json")
    net = tmp_path / "net.py"
    net.write_text("from tests.recipes.reference import data, tiny\n", encoding="utf-8")
    words = ["evolve-proxy", str(file), str(file), "--model", f"{net}:tiny", "--data",
             f"{net}:data", *WORDS, "--output", str(tmp_path / "out")]  # fmt: skip

    ran = subprocess.run([sys.executable, "-m", "mpq", *words], check=True, capture_output=True,
                         text=True)  # fmt: skip

    own = replace(task(), held_out=None)
    again = evolve_proxy([(own, bench)] * 2, generations=2, population=8, seed=3)
    assert (tmp_path / "out" / "proxy.json").read_text() == again.to_json()
    assert f"--sensitivity '{again.estimator}'" in ran.stdout


def test_as_many_networks_as_benchmarks(bench: LossBenchmark, tmp_path: Path) -> None:
    """Or one."""
    file = str(bench.save(tmp_path / "bench.json"))
    models = [word for name in "ab" for word in ("--model", f"{name}.py:net")]

    ran = CliRunner().invoke(app, ["evolve-proxy", file, *models, "--data", "a.py:data"])

    assert ran.exit_code == 2
    assert "--data is given 1 times for 2 --model" in " ".join(ran.stderr.split())


def test_networks_of_their_own_layers_and_weights(bench: LossBenchmark, tmp_path: Path) -> None:
    """Two benchmarks of two networks, one of which reads a file of weights."""
    net = tmp_path / "net.py"
    net.write_text(OTHER, encoding="utf-8")
    weights = tmp_path / "weights.pt"
    torch.save(other().state_dict(), weights)
    second = mpq.Task(other(), data, candidates=CANDIDATES, rounding="nearest")
    mpq.compare(second, [LIMIT], estimators=["weight-error"], num_random=8, max_loss=10,
                save_bench=tmp_path / "other.json")  # fmt: skip
    files = [str(bench.save(tmp_path / "bench.json")), str(tmp_path / "other.json")]
    words = ["--model", f"{net}:tiny", "--weights", "none", "--data", f"{net}:data"]
    words += ["--model", f"{net}:blank", "--weights", str(weights), "--data", f"{net}:data"]

    ran = CliRunner().invoke(app, ["evolve-proxy", *files, *words, *WORDS, "--output",
                                   str(tmp_path / "out")])  # fmt: skip

    assert ran.exit_code == 0, ran.output
    own = [(replace(task(), held_out=None), bench), (second, LossBenchmark.load(Path(files[1])))]
    again = evolve_proxy(own, generations=2, population=8, seed=3)
    assert (tmp_path / "out" / "proxy.json").read_text() == again.to_json()
    assert len(again.spearman) == 2


OTHER = """
from tests.recipes.reference import data, tiny
from tests.workflows.test_evolve_proxy import other

def blank():
    net = other()
    for parameter in net.parameters():
        parameter.data.zero_()
    return net
"""


def other() -> nn.Module:
    """Of fewer layers than the tiny network, for the same examples."""
    torch.manual_seed(1)
    net = tiny()
    return nn.Sequential(net[0], nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), net[-1]).eval()
