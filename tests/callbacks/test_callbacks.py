"""What callbacks are told, and that they change nothing."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

import mpq
from mpq._support.events import audience, listening, tell, warn
from mpq._support.phases import phase
from mpq._support.progress import track
from mpq._support.schema import read_schema
from mpq.callbacks import (
    EVENTS,
    Callback,
    Ended,
    Event,
    Finished,
    JsonLines,
    Measured,
    MLflow,
    PhaseBegan,
    PhaseEnded,
    Planned,
    Progress,
    Progressed,
    Solved,
    TensorBoard,
    Warned,
    plans,
)
from mpq.errors import CallbackError, InputError, MissingDependencyError, MpqError, OutputError
from mpq.workflows import forecast
from mpq.workflows.compare_recipes import compare_recipes
from tests.callbacks.listeners import Kept, Tracked
from tests.workflows.networks import Net, batches

LIMITS = {"effective_bits": 4}
LISTENERS: dict[str, Callable[[Path], Callback]] = {
    "kept": lambda _: Kept(),
    "progress": lambda _: Progress(),
    "json": lambda folder: JsonLines(folder / "log.jsonl"),
    "tensorboard": TensorBoard,
    "mlflow": lambda _: MLflow(Tracked()),
    "meddling": lambda _: Meddling(),
}


class Meddling(Callback):
    """Draws and seeds, and asks for a pass through the tracked work itself."""

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        torch.rand(1)
        list(track(range(2), "own"))


class Failing(Callback):
    """Fails when it is told of one kind of event."""

    def __init__(self, kind: type[Event], error: Exception) -> None:
        self.kind, self.error = kind, error

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        if isinstance(event, self.kind):
            raise self.error


@pytest.fixture(scope="module")
def task() -> mpq.Task:
    torch.manual_seed(0)
    return mpq.Task(
        Net().eval(), batches(2), candidates=["w2", "w4", "w8"], rounding="nearest"
    )  # fmt: skip


@pytest.fixture(scope="module")
def told(task: mpq.Task) -> Kept:
    """All that one search tells."""
    kept = Kept()
    mpq.search(task, LIMITS, callbacks=[kept])
    return kept


def test_a_search_tells_its_course(told: Kept) -> None:
    """Phases one after the other, each with its progress; the result, and the end."""
    began, ended = ([e.phase for e in told.of(kind)] for kind in (PhaseBegan, PhaseEnded))

    assert began == ended
    # On a machine that is busy it is long, and planned.
    assert [name for name in dict.fromkeys(began) if name != "planning"] == [
        "layers and costs", "ranges", "estimate", "solving", "comparing with other answers",
        "measuring",
    ]  # fmt: skip
    assert [type(event) for event in told.events[-2:]] == [Finished, Ended]
    assert told.events[-1] == Ended(None)


def test_what_is_told_is_what_the_result_says(told: Kept) -> None:
    """Loss, solver, measured networks: the numbers of the result, not others."""
    (finished,), (solved,) = told.of(Finished), told.of(Solved)
    result = finished.result
    held_out = [e for e in told.of(Measured) if e.examples == "held out"]

    assert finished.metrics["measured_loss"] == result.measured.divergence
    assert (
        finished.metrics["used/effective_bits_bits"]
        <= finished.settings["limit/effective_bits_bits"]
    )
    assert solved.status == "optimal"
    assert solved.loss == pytest.approx(result.problem.loss_of(result.columns))
    answer = [e for e in held_out if dict(e.precisions) == result.assignment.precisions]
    assert [e.loss for e in answer] == [result.measured.divergence]
    with pytest.raises(TypeError):
        answer[0].precisions["fc"] = None


def test_progress_begins_at_nothing_and_ends_in_full(told: Kept) -> None:
    """Of every kind of work, each time that it is done."""
    by_work: dict[str, list[Progressed]] = {}
    for event in told.of(Progressed):
        by_work.setdefault(event.work, []).append(event)

    assert by_work
    for events in by_work.values():
        assert events[0].done == 0
        assert events[0].seconds_left is None
        assert events[-1].done == events[-1].total
        assert events[-1].seconds_left == 0


@pytest.mark.parametrize("name", LISTENERS)
def test_no_callback_changes_an_answer(
    task: mpq.Task, told: Kept, tmp_path: Path, name: str
) -> None:
    """The same bytes, whoever listens, and whatever it does with global generators."""
    alone = told.of(Finished)[0].result

    found = mpq.search(task, LIMITS, callbacks=[LISTENERS[name](tmp_path)])

    assert found.assignment.to_json() == alone.assignment.to_json()
    assert found.problem.to_json() == alone.problem.to_json()


@pytest.mark.parametrize("name", LISTENERS)
def test_a_callback_is_used_again(task: mpq.Task, tmp_path: Path, name: str) -> None:
    """It begins anew with the next run."""
    callback = LISTENERS[name](tmp_path)

    for _ in range(2):
        with listening([callback]):
            list(track(range(3), "work"))

    assert audience() is None


@pytest.mark.parametrize("verb", ["frontier", "compare", "recipes", "tune", "evaluate"])
def test_every_verb_tells(
    task: mpq.Task, told: Kept, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it returns is what was told; where it is long, a plan as well."""
    kept, one = Kept(), told.of(Finished)[0].result
    verbs: dict[str, Callable[[], Any]] = {
        "frontier": lambda: mpq.frontier(task, num_points=2, callbacks=[kept]),
        "compare": lambda: mpq.compare(
            task, LIMITS, estimators=["weight-error"], num_random=3, callbacks=[kept]
        ),
        "recipes": lambda: compare_recipes(task, LIMITS, ["hawq-v2"], [kept]),
        "tune": lambda: mpq.tune(task, one, "scales:epochs=1", callbacks=[kept]),
        "evaluate": lambda: mpq.evaluate(task.model, one.assignment, batches(2), callbacks=[kept]),
    }

    monkeypatch.setattr(plans, "LONG_S", 0.0)
    monkeypatch.setattr(forecast, "SOON_S", 0.0)

    found = verbs[verb]()

    assert kept.of(Finished)[-1].result is found
    assert kept.of(Progressed)
    assert kept.of(PhaseEnded)
    assert [
        sum(plan.phases.values()) + sum(plan.at_most.values()) > 0 for plan in kept.of(Planned)
    ] == [True]
    assert json.dumps(kept.of(Finished)[-1].to_dict(), allow_nan=True)
    assert isinstance(kept.events[-1], Ended)


@pytest.mark.parametrize("kind", [PhaseBegan, Progressed, Measured, Solved, Finished, Ended])
def test_an_error_in_a_callback_ends_the_work(task: mpq.Task, kind: type[Event]) -> None:
    """It says which callback, at what; the others are told that it is over."""
    other = Kept()

    with pytest.raises(CallbackError, match=f"Failing failed when it was told '{kind.name}': V"):
        mpq.search(task, LIMITS, callbacks=[other, Failing(kind, ValueError("no"))])

    assert not issubclass(CallbackError, MpqError)  # which is a result of comparisons
    assert isinstance(other.events[-1], Ended)
    if kind is not Ended:
        assert "ValueError: no" in str(other.events[-1].to_dict()["error"])


def test_a_callback_that_fails_in_an_estimate_is_no_result_of_it(task: mpq.Task) -> None:
    """A comparison has rows for estimators that fail, not for callbacks that do."""
    failing = Failing(Solved, InputError("mine"))

    for run in (
        lambda: mpq.compare(
            task, LIMITS, estimators=["weight-error"], num_random=3, callbacks=[failing]
        ),
        lambda: compare_recipes(task, LIMITS, ["hawq-v2"], [failing]),
    ):
        with pytest.raises(CallbackError, match="'solved': mine"):
            run()


def test_an_error_of_the_work_stays_the_cause() -> None:
    """A callback that fails in being told of it is a note beside it."""
    failing, kept = Failing(Ended, ValueError("late")), Kept()

    with pytest.raises(KeyError) as found, listening([failing, kept]):
        raise KeyError("first")

    assert "late" in found.value.__notes__[0]
    assert kept.events == [Ended("KeyError: 'first'")]


@pytest.mark.parametrize("wrong", [Kept, print, "log"])
def test_what_is_no_callback_is_refused(task: mpq.Task, wrong: Any) -> None:
    """With what it has to be."""
    with pytest.raises(InputError, match=r"a class of mpq\.callbacks\.Callback"):
        mpq.search(task, LIMITS, callbacks=[wrong])
    with pytest.raises(InputError, match="callbacks is a list"):
        mpq.search(task, LIMITS, callbacks=Kept())  # type: ignore[arg-type]
    for no_list in (None, 5):
        with pytest.raises(InputError, match="callbacks is a list, empty for none"):
            mpq.search(task, LIMITS, callbacks=no_list)  # type: ignore[arg-type]


def test_callbacks_of_a_generator_are_told() -> None:
    """It can be gone through once only."""
    kept = Kept()

    with listening(each for each in [kept]):  # type: ignore[arg-type]
        warned = Warned("text")
        tell(warned)

    assert kept.events == [warned, Ended()]


def test_warnings_are_told() -> None:
    """Ours, beside Python's own."""
    kept = Kept()

    with listening([kept]), pytest.warns(UserWarning, match="attention") as found:
        warn("attention")

    assert kept.of(Warned) == [Warned("attention")]
    assert found[0].filename == __file__


EXAMPLES: tuple[Event, ...] = (
    Planned({"estimate": 2.0}, 2.0, ("tuning",), {"solving": 20.0}),
    PhaseBegan("a"),
    Progressed("a", 0, None, None),
    PhaseEnded("a", 1.0),
    Measured("held out", {"fc": mpq.Precision.parse("w4a8")}, float("nan"), "nats", 0.5),
    Solved("ilp", "optimal", 1.0, None, float("nan")),
    Warned("text"),
    Finished(None, {"seed": 0, "device": "x"}, {"loss": float("inf")}),
    Ended("KeyboardInterrupt"),
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A log, checked against its schema."""
    schema = Draft202012Validator(read_schema("mpq.callbacks", "event.schema.json"))
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in found:
        assert list(schema.iter_errors(line)) == []
    return found


def test_every_event_has_a_line(tmp_path: Path) -> None:
    """As the schema says; what is not finite is null."""
    assert {type(event) for event in EXAMPLES} == set(EVENTS)
    log = JsonLines(tmp_path / "log.jsonl")

    for event in EXAMPLES:
        log.on(event)

    lines = lines_of(log.path)
    assert [line["event"] for line in lines] == [event.name for event in EXAMPLES]
    assert len({line["run"] for line in lines}) == 1
    assert lines[4]["loss"] is None
    assert lines[4]["precisions"] == {"fc": "w4a8"}


def test_a_log_is_added_to(task: mpq.Task, tmp_path: Path) -> None:
    """Another run has a mark of its own; what a kill has torn is cut off."""
    path = tmp_path / "log.jsonl"
    mpq.search(task, LIMITS, callbacks=[JsonLines(path)])
    before = path.read_bytes()
    path.write_bytes(before + b'{"schema_version": 1, "ru')

    mpq.search(task, LIMITS, callbacks=[JsonLines(path)])

    lines = lines_of(path)
    assert path.read_bytes().startswith(before)
    assert len({line["run"] for line in lines}) == 2
    assert [line["event"] for line in lines].count("finished") == 2
    elapsed = [line["elapsed_s"] for line in lines[: before.count(b"\n")]]
    assert elapsed == sorted(elapsed)


def test_a_log_has_a_line_a_second_of_one_work(tmp_path: Path) -> None:
    """However many steps it has."""
    log = JsonLines(tmp_path / "log.jsonl")

    with listening([log]):
        list(track(range(5000), "work"))

    assert [line["event"] for line in lines_of(log.path)] == ["progressed", "ended"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"import torch\n", "is no log of mpq's events"),
        (b"import torch", "is no log of mpq's events"),
        (b"{", "is no log of mpq's events"),
        (b'{"schema_version": 1, "name": "a device"}', "is no log of mpq's events"),
        (b'{"schema_version": 9, "run": "x", "event": "ended"}\n', "schema version 9"),
    ],
)
def test_another_file_is_not_added_to(tmp_path: Path, content: bytes, told: str) -> None:
    """It stays as it is."""
    path = tmp_path / "net.py"
    path.write_bytes(content)

    with pytest.raises(OutputError, match=told):
        JsonLines(path)

    assert path.read_bytes() == content


@pytest.mark.parametrize("torn", [b'{"sch', b'{"schema_version": 1, "ru', bytes(40)])
def test_a_log_whose_first_line_was_torn_is_begun_again(tmp_path: Path, torn: bytes) -> None:
    """By a kill, or a disk that was full: the same command again must not be refused."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(torn)

    JsonLines(path).on(Warned("text"))

    assert [line["event"] for line in lines_of(path)] == ["warned"]


@pytest.mark.parametrize("path", ["none/log.jsonl", "."])
def test_where_no_log_can_be(tmp_path: Path, path: str) -> None:
    """Said at once, not after an hour."""
    with pytest.raises(OutputError, match="cannot write the log"):
        JsonLines(tmp_path / path)


def test_tensorboard_has_scalars_and_settings(told: Kept, tmp_path: Path) -> None:
    """Read by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = TensorBoard(tmp_path)
    for event in told.events:
        callback.on(event)
    runs = [EventAccumulator(str(file)) for file in sorted(tmp_path.iterdir())]
    scalars: dict[str, list[tuple[int, float]]] = {}
    tags: set[str] = set()
    for run in runs:
        run.Reload()
        tags |= set(run.summary_metadata)
        for name in run.Tags()["scalars"]:
            scalars.setdefault(name, []).extend((x.step, x.value) for x in run.Scalars(name))

    expected = [e.loss for e in told.of(Measured) if e.examples == "held out"]
    assert [step for step, _ in scalars["held_out/loss"]] == list(range(len(expected)))
    assert [x for _, x in scalars["held_out/loss"]] == pytest.approx(expected, rel=1e-6)
    assert "measured_loss" in scalars
    assert any(tag.startswith("_hparams_") for tag in tags)


def test_mlflow_has_metrics_and_params(told: Kept) -> None:
    """What the stand-in is given; numbers that are not finite are left out."""
    tracked = Tracked()
    callback = MLflow(tracked)
    for event in told.events:
        callback.on(event)

    (finished,) = told.of(Finished)
    expected = [e.loss for e in told.of(Measured) if e.examples == "held out"]
    assert tracked.metrics["held_out/loss"] == list(enumerate(expected))
    assert tracked.params == finished.settings
    assert tracked.metrics["measured_loss"] == [(0, finished.metrics["measured_loss"])]


def test_mlflow_itself(told: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed, its own store has them."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: mpq[mlflow]")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())

    with mlflow.start_run() as run:
        callback = MLflow()
        for event in told.events:
            callback.on(event)

    found = mlflow.get_run(run.info.run_id).data
    (finished,) = told.of(Finished)
    assert found.metrics["measured_loss"] == finished.metrics["measured_loss"]
    assert found.params["estimator"] == finished.settings["estimator"]


@pytest.mark.parametrize(
    ("package", "make"),
    [("mlflow", lambda _: MLflow()), ("torch.utils.tensorboard", TensorBoard)],
)
def test_a_package_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, make: Callable[[Path], Callback]
) -> None:
    """The line that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingDependencyError, match=r"pip install 'mpq\[(mlflow|tensorboard)\]'"):
        make(tmp_path)


def test_nested_audiences_hear_the_same() -> None:
    """The inner one ends first; phases within phases are one."""
    outer, inner = Kept(), Kept()

    with listening([outer]), phase("a"), listening([inner]), phase("b"):
        list(track(iter("xy"), "letters"))

    assert [e.name for e in inner.events] == ["progressed"] * 4 + ["ended"]
    assert outer.of(PhaseBegan) == [PhaseBegan("a")]
    assert len(outer.of(Progressed)) == 4


def generator() -> Iterator[int]:
    yield from range(3)


def test_progress_of_what_has_no_length() -> None:
    """Its total is known at its end."""
    kept = Kept()

    with listening([kept]):
        list(track(generator(), "steps"))

    assert [(e.done, e.total) for e in kept.of(Progressed)] == [
        (0, None), (1, None), (2, None), (3, None), (3, 3),
    ]  # fmt: skip
