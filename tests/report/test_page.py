"""report.html without a browser: what it says, that it is made of saved files, that it is safe."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import mpq
from mpq._support.files import write_files
from mpq._support.phases import Spent, phase, recorded_phases
from mpq._support.schema import read_schema, validate
from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError
from mpq.problem.assignment import Assignment
from mpq.problem.cost_table import CostTable
from mpq.problem.limits import Limit, written_limit
from mpq.report import draw_bits
from mpq.report.frontier import Frontier, FrontierPoint
from mpq.report.page import render
from mpq.report.page.facts import Checked
from mpq.report.page.groups import groups_at_answer
from mpq.report.page.made import Made
from mpq.report.page.numbers import times
from mpq.report.save import save_result
from mpq.report.sections import frontier_files
from mpq.report.stored_frontier import frontier_from_json
from mpq.workflows.page.accounts import Accounts
from mpq.workflows.page.commands import (
    call_of,
    command_for,
    command_for_uniform,
    command_of,
    why_no_command,
)
from mpq.workflows.page.facts import facts_of
from mpq.workflows.page.moves import best_moves, single_moves
from mpq.workflows.page.pairs import strongest_pairs
from mpq.workflows.page.prices import price_of
from mpq.workflows.page.report import report
from mpq.workflows.page.trust import order_of, size_of
from mpq.workflows.page.write import page_beside
from mpq.workflows.provenance import UsedDevice
from mpq.workflows.refine import Refinement
from mpq.workflows.result import SearchResult
from mpq.workflows.tuning_record import TuningRecord
from tests.report.made_up import CANDIDATES, HOSTILE, blocks, curve, made_up
from tests.report.reading import read
from tests.user_file import user_file
from tests.workflows.networks import Net, batches

MADE = Made(("mpq", "search"), (Spent("solving", 1.5, None),))


def saved(result: SearchResult, folder: Path) -> bytes:
    """The page that a search leaves in a folder, beside its files."""
    frontier = curve(result)
    save_result(result, folder, frontier, ())
    write_files(folder, frontier_files(frontier, result.run_id))
    page_beside(replace(result, made=MADE), frontier, folder)
    return (folder / "report.html").read_bytes()


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scripts are tested in a browser, and are long."""
    monkeypatch.setattr(render, "vega_script", lambda: "vega")


@pytest.mark.parametrize("interact", [False, True])
def test_the_page_is_made_again_from_files_alone(tmp_path: Path, interact: bool) -> None:
    """Byte by byte."""
    first = saved(made_up(blocks(10), interact=interact), tmp_path)

    again = report([tmp_path], tmp_path / "again.html")

    assert again.read_bytes() == first


def test_the_page_is_opened_in_the_users_browser(tmp_path: Path) -> None:
    """The one that the variable BROWSER names gets its address."""
    saved(made_up(blocks(4)), tmp_path)
    browser, shown = tmp_path / "browser", tmp_path / "shown"
    browser.write_text(f'#!/bin/sh\necho "$1" > {shown}\n', encoding="utf-8")
    browser.chmod(0o755)
    command = [sys.executable, "-m", "mpq.cli", "report", str(tmp_path), "--open"]

    subprocess.run(command, env={**os.environ, "BROWSER": f"{browser} %s"}, check=True, timeout=120)

    assert shown.read_text().strip() == (tmp_path / "report.html").as_uri()


@pytest.mark.parametrize("error", [None, ValueError, IndexError, webbrowser.Error])
def test_a_browser_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """The page is made, and a line says why nothing is seen; BROWSER may hold no command."""

    def opens(url: str) -> bool:
        if error is not None:
            raise error("No closing quotation")
        return False

    saved(made_up(blocks(4)), tmp_path)
    page = tmp_path / "again.html"
    monkeypatch.setattr(webbrowser, "open", opens)

    ran = CliRunner().invoke(app, ["report", str(tmp_path), "--output", str(page), "--open"])

    assert ran.exit_code == 0
    assert page.exists()
    assert f"no browser was found to open {page}" in ran.stderr


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """No element and no attribute is theirs, and the script's data has each of them."""
    plain, hostile = (
        read(saved(made_up(names), tmp_path / str(k)))
        for k, names in enumerate((tuple(f"layer{k}" for k in range(8)), HOSTILE))
    )

    data = json.loads(hostile.data)

    assert hostile.tags.count("script") == plain.tags.count("script") == 3
    assert set(hostile.tags) <= set(plain.tags) | {"wbr"}
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]
    assert data["file"]["names"] == list(HOSTILE)


@pytest.mark.parametrize(
    "text", ["</script>", "<!--", "\u2028", "\u2029", "&amp;", "é😀", "\\u003c"]
)
def test_embedded_json_is_read_as_it_was(text: str) -> None:
    """And holds nothing that ends a script."""
    found = str(render.embedded({"text": text, "nan": float("nan")}))

    assert json.loads(found) == {"text": text, "nan": None}
    assert found.isascii()
    assert not set(found) & set("<>&")


def test_without_the_scripts_of_pictures_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All numbers are there."""
    monkeypatch.setattr(render, "vega_script", lambda: "")

    page = saved(made_up(blocks(6)), tmp_path).decode()

    assert "pip install vl-convert-python" in page
    assert "model.<wbr>layers.<wbr>1.<wbr>attention.<wbr>query" in page


def test_the_score_of_the_users_own_is_an_axis(tmp_path: Path) -> None:
    """Of networks that were measured; the file of another point does not have the answer's."""
    page = saved(made_up(blocks(6), score="judges.py:<b>"), tmp_path)
    data = json.loads(read(page).data)

    answer = next(point for point in data["points"] if point["kind"] == "answer")
    assert answer["score"] == pytest.approx(50 - answer["measured"])
    assert answer["metadata"]["measured_score"] == answer["score"]
    assert data["points"][0]["score"] is None
    assert data["points"][0]["metadata"]["measured_score"] is None
    assert (data["scoreName"], data["higherScoreIsBetter"]) == ("judges.py:<b>", True)
    assert b"judges.<wbr>py:&lt;b&gt;" in page
    assert b"Score" not in saved(made_up(blocks(6)), tmp_path).split(b"<script")[0]


def test_what_has_no_weights_has_no_bits_of_them() -> None:
    """Such as a cache of keys, whose precision says 32 as of any weight that stays as it came."""
    result = made_up(blocks(6))
    layers = tuple(replace(layer, kind="k_cache") for layer in result.layers[4:])
    assigned = [replace(x, kind="k_cache") for x in result.assignment.layers[4:]]
    result = replace(
        result,
        layers=result.layers[:4] + layers,
        assignment=replace(
            result.assignment, layers=(*result.assignment.layers[:4], *assigned)
        ),
    )  # fmt: skip

    facts = facts_of(result, curve(result))

    bits = [[choice.weight_bits is None for choice in layer.choices] for layer in facts.layers]
    assert not any(map(any, bits[:4]))
    assert all(map(all, bits[4:]))
    assert groups_at_answer(facts)[1].weight_bits == "–"
    bars = draw_bits(result.assignment).patches
    assert [bar.get_window_extent().height > 0 for bar in bars] == [True] * 4 + [False] * 2


def test_2000_layers_are_below_3_megabytes() -> None:
    """With the scripts of the pictures, which are .9 MB: what the page holds of layers is short."""
    result = made_up(blocks(2000))

    page = render.page_of(facts_of(result, curve(result, 2)))

    assert len(page) < 3_000_000 - 900_000


def test_what_a_colleague_would_say() -> None:
    """The best uniform precision within the budget, what is used of it, the accuracy."""
    result = made_up(blocks(10))

    facts = facts_of(result, replace(curve(result), others=result.beside("weight_bytes")))

    rows = {row.label: row.measured.divergence for row in result.comparisons}
    within = [n.label for n in facts.networks if n.is_within]
    best = min(within[1:], key=lambda label: rows[label])
    # One layer is fixed, which all of them break.
    assert facts.sentences[:2] == (
        "No uniform precision meets these budgets and keeps the rules for layers.",
        f"The answer has {times(rows['result'] / rows[best])} × the divergence of uniform {best}, "
        "the best uniform precision within the budgets, which breaks a rule.",
    )
    assert facts.sentences[2].startswith("It uses ")
    assert "not distinguishable from the original (90.0 % against 90.0 %" in facts.sentences[3]
    limit = result.problem.budgets[0].limit
    assert within[0] == "answer"
    assert within[1:] == [
        row.label for row in result.comparisons[2:] if row.costs["weight_bytes"] <= limit
    ]


@pytest.mark.parametrize(
    ("is_kept", "told"),
    [
        (True, "It was tuned (scales)."),
        (False, "Tuning (scales) was tried and not kept; this is the answer without it."),
    ],
)
def test_an_answer_says_whether_it_was_tuned(is_kept: bool, told: str) -> None:
    """One that was tuned in vain looks like that of the search, but for this."""
    result = made_up(blocks(6))
    provenance = replace(result.provenance, tuning=TuningRecord("scales", is_kept))

    tuned, before = (
        facts_of(found, curve(found)).sentences
        for found in (replace(result, provenance=provenance), result)
    )

    assert (told in tuned, told in before) == (True, False)


def test_what_was_measured_on_other_examples_is_told() -> None:
    """A tuned answer is, as some of them decided about it: nothing is said of the same ones."""
    result = made_up(blocks(6))
    first, answer, *uniform = result.comparisons
    fewer = replace(answer, measured=replace(answer.measured, num_examples=250))
    other = replace(result, comparisons=(first, fewer, *uniform))

    told, before = (facts_of(found, curve(found)) for found in (other, result))

    assert "The answer was measured on 250 examples, uniform " in told.sentences[2]
    assert not any("was measured on" in sentence for sentence in before.sentences)
    pages = [render.page_of(facts) for facts in (told, before)]
    assert [b"networks were measured on 250 or 500 examples" in page for page in pages] == [1, 0]
    assert [b"the same examples were used for all networks" in page for page in pages] == [0, 1]


def test_a_score_is_told_beside_that_of_the_original() -> None:
    """But the accuracy has a sentence of its own."""
    found, same = (facts_of(result, curve(result)) for result in (
        made_up(blocks(6), score="judge"), made_up(blocks(6), score="accuracy"),
    ))  # fmt: skip

    answer = next(network for network in found.networks if network.kind == "answer")
    assert found.sentences[-1] == (
        f"Its score (judge) is {answer.measured.score:.4g}, that of the original 50."
    )
    assert "score" not in " ".join(same.sentences)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((512.0, 9.0), "512 B of weight bytes, to the frontier: one KiB more saves 8 nats."),
        ((1024.0, 5.0), "1 KiB of weight bytes, to the frontier: one KiB more saves 3 nats."),
        ((3072.0, 1.5), "3 KiB of weight bytes, to the frontier: one KiB more saves 0.5 nats, and "
         "one KiB less costs 0.5 nats."),
        ((4096.0, 1.0), "4 KiB of weight bytes, to the frontier: one KiB less costs 0.5 nats."),
        ((3072.0, 0.5), "3 KiB of weight bytes, to the frontier: one KiB less costs 1.5 nats."),
        (None, ""),
    ],
)  # fmt: skip
def test_the_price_is_the_slope_from_the_answer(
    answer: tuple[float, float] | None, told: str
) -> None:
    """On both sides of it, as far as there are points; none that costs more and loses more."""
    known = ((1024.0, 5.0), (2048.0, 2.0), (4096.0, 1.0))
    points = tuple(FrontierPoint("frontier", at, loss, {}) for at, loss in known)
    others = () if answer is None else (FrontierPoint("result", *answer, {}),)

    found = price_of(Frontier("weight_bytes", "bytes", "nats", points, others))

    assert found == (f"From the answer, {told}" if told else "")


def test_a_uniform_precision_that_breaks_a_rule_is_no_match() -> None:
    """Both tables say so, and the answer is compared with the best that breaks none."""
    made = made_up(blocks(10))
    unruled = replace(made.problem.constraints, fixed={})
    result = replace(made, problem=replace(made.problem, constraints=unruled))
    limit, rows = result.problem.budgets[0].limit, result.comparisons[2:]
    second, best = [row.label for row in rows if row.costs["weight_bytes"] <= limit][-2:]
    other = tuple(x for x in CANDIDATES if str(x) != best)
    chosen = result.problem.precisions_of(result.columns)
    rule = {next(name for name, x in chosen.items() if x in other): other}
    problem = replace(result.problem, constraints=replace(unruled, candidates=rule))
    ruled = replace(result, problem=problem)

    free, facts = (
        facts_of(x, replace(curve(x), others=x.beside("weight_bytes"))) for x in (result, ruled)
    )

    assert [x.label for x in facts.networks if not x.keeps_rules] == [best]
    assert [x.label for x in facts.points if not x.keeps_rules] == [f"uniform {best}"]
    assert render.page_of(facts).count(b">breaks a rule<") == 2
    for found, label in ((free, best), (facts, second)):
        told = f"of uniform {label}, the best uniform precision within the budgets."
        assert found.sentences[0].endswith(told)


def test_how_far_measurements_are_from_predictions() -> None:
    """Of whole networks, with how many are above; of a single one nothing is said."""
    pairs = ((1.0, 2.0), (1.0, 0.5), (2.0, 8.0), (0.0, 1.0))
    networks = tuple(Checked("x", "network", *pair) for pair in pairs)
    cell = Checked("fc at w4", "cell", 1.0, 100.0)

    assert size_of((*networks, cell)) == (
        "whole networks lose 0.5 to 4 times what is predicted of them; 2 of 3 lose more than "
        "predicted"
    )
    assert size_of((networks[0], cell)) == ""


def test_how_costs_are_known() -> None:
    """Bytes are counted; what a device says is estimated."""
    result = made_up(blocks(6))
    device = UsedDevice("chip", ("latency",), "estimated")
    priced = replace(result, provenance=replace(result.provenance, device=device))

    counted, estimated = (facts_of(each, curve(each)).cost_notes for each in (result, priced))

    assert counted[0] == "latency: by formula; how far off it is was not measured"
    assert estimated[0] == "latency: estimated (chip); how far off it is was not measured"
    assert "weight bytes: counted" in estimated
    assert "weight bytes besides its layers: 512 B" in estimated


def test_pairs_add_up_to_what_layers_lose_together() -> None:
    """All six pairs of four layers are their excess over a sum."""
    result = made_up(blocks(4), interact=True)

    found = strongest_pairs(result.problem, result.columns)

    assert result.problem.interactions is not None
    expected = result.problem.interactions.excess(result.columns)
    assert len(found) == 6
    assert sum(pair.loss for pair in found) == pytest.approx(expected)
    assert strongest_pairs(result.problem.additive(), result.columns) == ()


@pytest.mark.parametrize("interact", [False, True])
def test_moves_change_what_the_problem_says(interact: bool) -> None:
    """Loss and costs are those of the whole assignment with one group moved."""
    result = made_up(blocks(9), interact=interact)
    problem, names = result.problem, result.problem.loss.layers

    accounts = Accounts.of(result, "weight_bytes")
    moves = best_moves(accounts, single_moves(accounts, result.columns), "weight_bytes")

    assert moves
    for move in moves:
        moved = result.columns.copy()
        for name in move.layer.split(", "):
            moved[names.index(name)] = [str(p) for p in CANDIDATES].index(move.after)
        bytes_ = problem.budgets[0].used(moved) - problem.budgets[0].used(result.columns)
        assert move.loss == pytest.approx(
            problem.loss_of(moved) - problem.loss_of(result.columns), rel=1e-4, abs=1e-9
        )
        assert move.costs[1] == pytest.approx(bytes_)
        assert move.is_within is problem.budgets[0].is_met(moved)


def test_the_rank_correlation_is_scipys() -> None:
    """Also where some are equal; of four networks, and of equal ones, there is none."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 6, (12, 2)).astype(float)
    checks = tuple(Checked(str(k), "network", a, b) for k, (a, b) in enumerate(pairs.tolist()))

    expected = stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic

    assert order_of(checks) == pytest.approx(expected)
    assert order_of(checks[:4]) is None
    assert order_of(tuple(replace(check, predicted=1.0) for check in checks)) is None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "mpq search",
            "mpq search --no-safeguard --limit weight_bytes=1024B --output mpq-run-point",
        ),
        (
            "mpq search --limit weight_bytes=9KiB --limit latency=1ms",
            "mpq search --limit latency=1ms --no-safeguard --limit weight_bytes=1024B "
            "--output mpq-run-point",
        ),
        (
            "mpq frontier --points 3 --output runs/a",
            "mpq search --points 3 --no-safeguard --limit weight_bytes=1024B --output runs/a-point",
        ),
        (
            "mpq search --limit=weight_bytes=9KiB --output='a b' --fix x=w8a8",
            "mpq search --fix x=w8a8 --no-safeguard --limit weight_bytes=1024B "
            "--output 'a b-point'",
        ),
        (
            "mpq search --minimize weight_bytes --max-loss=0.1 --refine 2 --safeguard --seed 1",
            "mpq search --seed 1 --no-safeguard --limit weight_bytes=1024B --output mpq-run-point",
        ),
    ],
)
def test_a_points_command(command: str, expected: str) -> None:
    """The search's own with the point's limit and another folder; quoted for a shell."""
    assert command_for(shlex.split(command), "weight_bytes=1024B", "point") == expected


@pytest.mark.parametrize("log", ["--log runs/a.log", "--log=runs/a.log"])
def test_no_copied_command_writes_to_the_log_of_the_first_run(tmp_path: Path, log: str) -> None:
    """Neither the answer's nor a point's, nor what repeats the run; made.json has it as it was."""
    words = shlex.split(f"mpq search {log} --seed 1 --output runs/a")
    result = replace(made_up(blocks(6)), made=Made(tuple(words)))
    frontier = curve(result)
    whole = replace(frontier, others=result.beside("weight_bytes"))

    page_beside(result, frontier, tmp_path)
    facts = facts_of(result, whole)

    commands = [facts.command, *(point.command for point in facts.points)]
    assert len(commands) > len(frontier.points)
    assert all("--seed 1" in command and "log" not in command for command in commands)
    assert facts.command == "mpq search --seed 1 --output runs/a"
    assert Made.in_folder(tmp_path).command == tuple(words)
    assert "a.log" not in read((tmp_path / "report.html").read_bytes()).data


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "mpq search --precisions w4a8,w8a8 --fix=x=w8a8 --limit latency=1ms --output runs/a",
            "mpq search --precisions w4a8 --no-safeguard --limit weight_bytes=1024B "
            "--output runs/a-w4a8",
        ),
        (
            "mpq frontier --allow a*=w8a8 --ends w8a8 --seed 1 --resource weight_bytes",
            "mpq search --seed 1 --resource weight_bytes --precisions w4a8 --no-safeguard "
            "--limit weight_bytes=1024B --output mpq-run-w4a8",
        ),
    ],
)
def test_a_uniform_precisions_command(command: str, expected: str) -> None:
    """One candidate, whatever was limited and fixed; a recipe's rules are left, too."""
    words, limit = shlex.split(command), "weight_bytes=1024B"

    assert command_for_uniform(words, limit, "w4a8") == expected
    assert "--precisions w4a8 --ends none --allow none --no-safeguard" in (
        command_for_uniform(words, limit, "w4a8", has_recipe=True)
    )


def test_where_nothing_finds_a_point_the_page_says_why() -> None:
    """In a unit of one's own, amounts can be relative alone; a tuning is of one answer."""
    result = made_up(blocks(6))
    frontier = replace(curve(result), others=result.beside("weight_bytes"))
    by = {
        words: replace(result, made=Made(tuple(words.split())))
        for words in ("mpq search", "mpq tune runs/a")
    }
    uniform, other = frontier.others[1], replace(frontier, unit="cycles")
    far = replace(uniform, cost=float("nan"))
    mixed = replace(uniform, precisions={**uniform.precisions, "a": CANDIDATES[4]})

    found = {
        "cycles": why_no_command(by["mpq search"], frontier.points[0], other),
        "tuned": why_no_command(by["mpq tune runs/a"], frontier.points[0], frontier),
        "far": why_no_command(by["mpq search"], far, frontier),
        "mixed": why_no_command(by["mpq search"], mixed, frontier),
        "found": why_no_command(by["mpq search"], uniform, frontier),
    }

    taking = replace(uniform, label="frontier (uniform w2a8)")

    assert written_limit("mine", 3.0, "cycles") == ""
    # One that took the place of a point of the frontier is found as it is beside it.
    assert command_of(by["mpq search"], taking, frontier) == (
        command_of(by["mpq search"], uniform, frontier)
    )
    assert found == {
        "cycles": "no limit can be written in cycles",
        "tuned": "mpq tune worked on one saved answer, and finds no others",
        "far": "the device cannot run every layer at w2a8",
        "mixed": "some layers may not take w2a8, and have what is nearest to it",
        "found": "",
    }
    assert command_of(by["mpq search"], far, frontier) == ""
    (point,) = (
        point
        for point in facts_of(by["mpq tune runs/a"], frontier).points
        if point.label == "uniform w2a8"
    )
    assert (point.command, point.why_no_command) == ("", found["tuned"])


@pytest.mark.parametrize(
    ("resource", "unit"),
    [("latency", "seconds"), ("weight_bytes", "bytes"), ("energy", "joules"),
     ("bit_operations", "bitops"), ("effective_bits", "bits")],
)  # fmt: skip
@pytest.mark.parametrize("amount", [1024.0, 5.369534886238903e-05])
def test_a_written_limit_is_read_as_it_was(resource: str, unit: str, amount: float) -> None:
    """To the last digit, so that the point is within it."""
    table = CostTable(resource, unit, ("fc",), CANDIDATES[:1], np.ones((1, 1)))

    assert Limit.parse(written_limit(resource, amount, unit)).resolve(table) == amount


def test_a_call_from_python_has_the_methods_of_the_search() -> None:
    """A point's is without the safeguard, which may take another answer."""
    result = made_up(blocks(6))
    frontier = replace(curve(result), others=result.beside("weight_bytes"))
    limit, answer = result.problem.budgets[0].limit, frontier.others[0]
    methods = 'sensitivity="sketch", solver="lagrangian"'

    own = command_of(result, answer, frontier)
    points = command_of(result, frontier.points[0], frontier)

    assert answer.label == "result"
    assert own == f'mpq.search(task, {{"weight_bytes": {limit!r}}}, {methods})'
    assert points.endswith(f"}}, {methods}, safeguard=False)")
    assert str(frontier.points[0].cost) in points


def test_what_was_asked_from_python_is_called_again() -> None:
    """Limits as they were written, and what was made small; the page has the call and says it."""
    torch.manual_seed(0)
    net, data = Net().eval(), batches(8)
    task = mpq.Task(net, data, candidates=["w4", "w8"], rounding="nearest")
    found = mpq.search(
        task, {"weight_bytes": "0.9x:w8"}, objective=mpq.Objective("effective_bits", max_loss=0.5),
        sensitivity="weight-error", safeguard=False,
    )  # fmt: skip
    frontier = replace(found.frontier(), others=found.beside("weight_bytes"))

    facts, own = facts_of(found, frontier), call_of(found)
    scope = {"mpq": mpq, "task": task, "dataclasses": dataclasses}
    again = eval(own, scope)
    uniform = eval(next(x.command for x in facts.points if x.kind == "uniform"), scope)

    assert own == (
        'mpq.search(task, {"weight_bytes": "0.9x:w8a32"}, sensitivity="weight-error", '
        'objective=mpq.Objective("effective_bits", max_loss=0.5), safeguard=False)'
    )
    assert facts.call == own
    assert (
        again.to_json().partition('"comparisons"')[2]
        == (found.to_json().partition('"comparisons"')[2])
    )
    assert {p.weight.number.bits for p in uniform.assignment.precisions.values()} == {4}
    assert ("what was made small", "effective bits, where the predicted loss is at most 0.5") in (
        facts.made
    )
    assert ("limits that were asked for", "weight_bytes=0.9x:w8a32") in facts.made


def test_a_uniform_call_leaves_what_layers_may_take() -> None:
    """Of a search from Python that fixed a layer, limited another, and had ends of its own."""
    torch.manual_seed(0)
    rules = mpq.Rules(fix={"hidden": "w8"}, allow={"grouped": ["w8"]}, ends="w8", find_ties=False)
    task = mpq.Task(
        Net().eval(), batches(8), candidates=["w4", "w8"], rounding="nearest", rules=rules
    )
    found = mpq.search(task, {"weight_bytes": "1x:w8"}, sensitivity="weight-error")
    frontier = replace(found.frontier(), others=found.beside("weight_bytes"))
    (w4,) = (x for x in frontier.others if x.label.startswith("w4"))

    command = command_of(found, w4, frontier)
    again = eval(command, {"mpq": mpq, "task": task, "dataclasses": dataclasses})

    assert {p.weight.number.bits for p in again.assignment.precisions.values()} == {4}
    assert again.measured.divergence == found.comparison(w4.label).measured.divergence


def test_a_refined_answer_is_called_with_its_rounds() -> None:
    """Without them another assignment is found; points of the frontier are not refined."""
    result = made_up(blocks(6))
    rounds = (Refinement(0.2, 0.3, True), Refinement(0.1, 0.4, False))
    refined = replace(result, provenance=replace(result.provenance, refinements=rounds))
    frontier = replace(curve(refined), others=refined.beside("weight_bytes"))

    assert command_of(refined, frontier.others[0], frontier).endswith(", refine=2)")
    assert "refine" not in command_of(refined, frontier.points[0], frontier)


@pytest.mark.parametrize(
    ("label", "folder"), [("frontier point 2", "a-point"), ("uniform w6a8", "a-w6a8")]
)
def test_a_points_command_finds_the_point(tmp_path: Path, label: str, folder: str) -> None:
    """As it stands on the page, though the search made another resource small, and fixed a layer.

    A uniform precision is measured as it was beside the search.
    """
    file = tmp_path / "net.py"
    file.write_text(user_file(num_batches=2), encoding="utf-8")
    words = (
        f"search --model {file}:make_net --data {file}:calibration --sensitivity weight-error "
        "--rounding nearest --weight-range minmax --activation-range minmax --points 4 "
        "--minimize weight_bytes --max-loss 0.001 --precisions w4a8,w6a8,w8a8 --fix 0=w8a8"
    )
    output = str(tmp_path / "a")
    assert CliRunner().invoke(app, [*words.split(), "--output", output]).exit_code == 0
    data = json.loads(read((tmp_path / "a" / "report.html").read_bytes()).data)
    (point,) = (x for x in data["points"] if x["label"] == label)
    kinds = data["layers"]["precisions"]
    chosen = [
        kinds[own[place]]["p"]
        for own, place in zip(data["layers"]["choices"], point["choices"], strict=True)
    ]

    again = CliRunner().invoke(app, shlex.split(point["command"])[1:])

    assert again.exit_code == 0, again.stderr
    found = Assignment.from_json((tmp_path / folder / "assignment.json").read_text())
    assert [str(layer.precision) for layer in found.layers] == chosen
    if label.startswith("uniform"):
        assert found.metadata.measured_loss == point["measured"]


def test_how_it_was_made_is_kept() -> None:
    """By its schema, and without the password of a database."""
    url = "surrogate:storage=postgresql://me:secret@host/db"

    made = Made(phases=(Spent("solving", 2.0, 1024),)).by(["mpq", "search", "--solver", url])
    text = made.to_json("mpq-run-0")

    validate(json.loads(text), read_schema("mpq.report", "made.schema.json"), "made")
    assert "secret" not in text
    assert "postgresql://me:***@host/db" in text
    assert Made.from_json(text) == made


def test_phases_are_counted_once() -> None:
    """The outer one of two; the same one again is added; nobody asks, nothing is counted."""
    with recorded_phases() as phases:
        for _ in range(2):
            with phase("a"), phase("within"):
                pass
        with phase("b"):
            pass
    with phase("c"):
        pass

    assert list(phases.spent) == ["a", "b"]
    assert all(spent.seconds >= 0 for spent in phases.spent.values())


def test_a_frontier_comes_back() -> None:
    """With what was measured of its points, equal in every number."""
    frontier = curve(made_up(blocks(5)))
    measured = made_up(blocks(5)).measured
    first = replace(frontier.points[0], measured=measured, label="frontier (uniform w2a8)")
    frontier = replace(frontier, points=(first, *frontier.points[1:]), untrusted=("a",))

    found = frontier_from_json(frontier.to_json())

    assert found == replace(frontier, others=())


def changed(folder: Path, change: Any) -> None:
    """frontier.json with something else in it."""
    path = folder / "frontier.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """Another network's frontier, a file that is none, no folder."""
    saved(made_up(blocks(5)), tmp_path)
    changed(tmp_path, lambda data: data["points"][0]["precisions"].update(other="w8a8"))
    with pytest.raises(FileFormatError, match="of a network with other layers"):
        report([tmp_path])

    changed(tmp_path, lambda data: data.update(points="none"))
    with pytest.raises(FileFormatError, match=r"frontier\.json: "):
        report([tmp_path])

    with pytest.raises(InputError, match="name a folder of a search"):
        report([])


def test_a_frontier_that_was_not_saved_is_solved_for(tmp_path: Path) -> None:
    """The page then has twenty limits' points."""
    saved(made_up(blocks(5)), tmp_path)
    (tmp_path / "frontier.json").unlink()

    page = read(report([tmp_path]).read_bytes())

    assert len(json.loads(page.data)["points"]) > 10


def test_a_page_of_an_earlier_run_is_removed(tmp_path: Path) -> None:
    """It would be believed beside today's files."""
    saved(made_up(blocks(5)), tmp_path)

    result = made_up(blocks(6))
    save_result(result, tmp_path, curve(result), ())

    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "made.json").exists()
