"""Answers that are tuned: decided on unseen examples, saved, measured, exported as they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.cli.console import print_result
from mpq.errors import FileFormatError, InputError, MismatchError, UnknownNameError
from mpq.network.examples import Calibration
from mpq.network.tuned_parameters import TUNED_FILE
from mpq.tuning import TUNINGS
from mpq.tuning.checkpoint import CHECKPOINT_FILE
from mpq.tuning.descent import Descent
from mpq.tuning.student import Student
from mpq.workflows.setup import Prepared
from mpq.workflows.tuning import Examples, Tuner
from mpq.workflows.tuning_record import TuningRecord
from tests.backends.negated import negated
from tests.workflows.networks import Net, batches

LIMIT = {"effective_bits": 3.5}
QUICK = "all:epochs=3,lr=0.01,code_lr=0.01,batch_size=16"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def task(model: nn.Module, **options: Any) -> mpq.Task:
    asked = {"candidates": ["w2", "w3", "w8"], "rounding": "nearest", **options}
    return mpq.Task(
        model, options.pop("data", batches(12)), **{k: v for k, v in asked.items() if k != "data"}
    )


def searched(model: nn.Module, **options: Any) -> mpq.SearchResult:
    return mpq.search(task(model, **options), LIMIT, sensitivity="weight-error")


def told(result: mpq.SearchResult) -> TuningRecord:
    assert result.provenance.tuning is not None
    return result.provenance.tuning


@pytest.fixture(scope="module")
def before(net: nn.Module) -> mpq.SearchResult:
    """Nothing tuned."""
    return searched(net)


@pytest.fixture(scope="module")
def after(net: nn.Module, before: mpq.SearchResult) -> mpq.SearchResult:
    """Tuned after the search, on held-out examples."""
    return mpq.tune(task(net), before, QUICK)


@pytest.fixture(scope="module")
def within(net: nn.Module) -> mpq.SearchResult:
    """Tuned by the search itself."""
    return searched(net, tune=QUICK)


def test_a_tuned_answer_loses_less(before: mpq.SearchResult, after: mpq.SearchResult) -> None:
    """On examples that nothing was chosen by; formats, costs and predictions stay."""
    record = told(after)

    assert record.is_kept
    assert record.loss is not None
    assert record.loss_before is not None
    assert record.loss < record.loss_before
    assert after.measured.divergence < before.measured.divergence
    assert after.assignment.precisions == before.assignment.precisions
    assert after.comparison("result").costs == before.comparison("result").costs
    assert after.assignment.weights != before.assignment.weights
    assert after.assignment.tuned is not None
    assert before.assignment.tuned is None


def test_a_tuning_says_which_versions_ran(
    before: mpq.SearchResult, after: mpq.SearchResult
) -> None:
    """As a search does."""
    assert set(after.made.versions) == {"mpq", "torch", "python"}
    assert after.made.versions == before.made.versions


def test_half_of_the_held_out_examples_decide_and_the_others_measure(
    after: mpq.SearchResult,
) -> None:
    """There are 48 of 192: 12 choose, 12 decide, 24 measure."""
    record = told(after)

    assert (record.share, record.num_choosing, record.num_deciding) == (0.0, 12, 12)
    assert record.num_measured == 24
    rows = {row.label: row.measured.num_examples for row in after.comparisons}
    assert (rows.pop("result"), rows.pop("original")) == (24, 24)
    assert set(rows.values()) == {48}
    assert after.assignment.metadata.num_held_out == 24
    assert after.assignment.metadata.measured_loss == after.measured.divergence
    assert "are 24 of the held-out examples" in " ".join(record.sentences("nats"))


def test_a_search_holds_back_what_decides(net: nn.Module, within: mpq.SearchResult) -> None:
    """A quarter of the calibration examples, which neither ranges nor codes nor prices see."""
    prepared = Prepared.of(task(net, tune=QUICK))
    assert prepared.unseen is not None
    sizes = [d.num_examples for d in (prepared.calibration, prepared.unseen, prepared.held_out)]

    record = told(within)

    assert sizes == [108, 36, 48]
    assert (record.share, record.num_choosing, record.num_deciding) == (0.25, 18, 18)
    assert record.is_kept
    assert {row.measured.num_examples for row in within.comparisons} == {48}
    shown = torch.cat([batch.args[0] for batch in prepared.calibration])
    torch.testing.assert_close(shown, torch.cat(batches(12))[:108])


def test_what_a_search_held_back_decides_again(net: nn.Module, within: mpq.SearchResult) -> None:
    """A tuning afterwards takes the same examples, and measures on all held-out ones."""
    again = mpq.tune(task(net), within, "scales:epochs=1")

    record = told(again)
    assert (record.share, record.num_choosing, record.num_deciding) == (0.25, 18, 18)
    assert again.measured.num_examples == 48


def test_what_is_measured_is_what_is_shipped(
    net: nn.Module, within: mpq.SearchResult, tmp_path: Path
) -> None:
    """Saved, loaded and evaluated, it loses the very same."""
    within.save(tmp_path)
    again = mpq.load(tmp_path)

    assert again.run_id == within.run_id
    assert again.provenance == within.provenance
    assert again.assignment == within.assignment
    held_out = batches(12)[9:]
    measured = mpq.evaluate(net, again.assignment, held_out)["quantized"]
    assert measured.divergence == within.measured.divergence


def numbers(model: nn.Module, assignment: mpq.Assignment, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = mpq.quantize(model, assignment)(x)
        return found


@pytest.mark.parametrize(
    ("backend", "is_negated"), [("onnx-qdq", False), ("c", False), ("onnx", False), ("onnx", True)]
)
def test_exports_compute_the_tuned_network(backend: str, is_negated: bool, tmp_path: Path) -> None:
    """Each runs its own file, and compares it with the simulation of what was tuned."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()
    to = None if backend == "onnx" else backend
    asked = mpq.Task(model, batches(12), candidates=["w4a8"], rounding="nearest", to=to)
    result = mpq.search(asked, {"effective_bits": 12}, sensitivity="weight-error")
    found = negated(model, result.assignment) if is_negated else result.assignment
    student = Student.of(model, found, TUNINGS.build("all"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in student.tensors().items():
            if name.endswith(("log_scale", "moved", "latent")):
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
    for part in student.parts:
        part.after_step()
    student.tuned().save(tmp_path / "run")
    loaded = mpq.Assignment.load(tmp_path / "run")
    assert loaded.weights is not None
    has_negative = [bool((x.scale < 0).any()) for x in loaded.weights.by_layer.values()]
    assert has_negative == [is_negated] * 2

    made = mpq.export(loaded, tmp_path / "out", backend, model, batches(1))

    assert made.deviation is not None
    assert made.deviation < 0.05  # numbers between two codes of an input fall to either side
    x = batches(1)[0]
    outputs = numbers(model, loaded, x)
    student.fill()
    with torch.no_grad():
        torch.testing.assert_close(outputs, student.module(x), rtol=1e-4, atol=1e-5)
    for other in (replace(loaded, tuned=None), replace(loaded, weights=None), result.assignment):
        assert not torch.allclose(outputs, numbers(model, other, x), atol=1e-2)


@pytest.mark.parametrize("name", ["text", "executorch", "modelopt"])
def test_texts_for_the_network_as_it_came_are_refused(
    net: nn.Module, after: mpq.SearchResult, name: str, tmp_path: Path
) -> None:
    """They say precisions, and who reads them has the untuned biases."""
    with pytest.raises(
        InputError, match=f"{name} writes precisions .* biases and norms were tuned"
    ):
        mpq.export(after.assignment, tmp_path / "out", name, net, batches(1))


def test_another_checkpoint_is_refused(after: mpq.SearchResult) -> None:
    """Its biases are none that were tuned."""
    torch.manual_seed(9)

    with pytest.raises(MismatchError, match="whose biases and norms were tuned"):
        mpq.quantize(Net().eval(), after.assignment)


def test_the_file_beside_it_is_needed(after: mpq.SearchResult, tmp_path: Path) -> None:
    """And one that nobody names is refused."""
    after.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / TUNED_FILE).unlink()

    with pytest.raises(FileFormatError, match=f"a part of it is in {TUNED_FILE}"):
        mpq.Assignment.load(tmp_path / "b")
    data = json.loads((tmp_path / "a" / "assignment.json").read_text())
    del data["tuned"]
    (tmp_path / "a" / "assignment.json").write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match=f"{TUNED_FILE} lies beside it"):
        mpq.Assignment.load(tmp_path / "a")


def test_where_it_does_not_help_nothing_changes(
    net: nn.Module, before: mpq.SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs that only harm are told with their losses; the answer and its measurement stay."""
    run = Descent.run

    def harmful(self: Descent, stages: Any) -> Any:
        return run(replace(self, measure=lambda: -self.measure()), stages)

    monkeypatch.setattr(Descent, "run", harmful)

    found = mpq.tune(task(net), before, QUICK)

    record = told(found)
    assert not record.is_kept
    assert record.why.startswith("no epoch lost less than none")
    assert len(record.epochs) == 1 + 3
    assert found.assignment == before.assignment
    assert found.comparisons == before.comparisons
    assert found.run_id != before.run_id  # as the record is another


def test_a_gain_by_chance_is_not_kept(net: nn.Module, before: mpq.SearchResult) -> None:
    """Examples that are all alike prove nothing, however much less they lose."""
    alike = [batches(1)[0][:1].expand(8, -1, -1, -1)]

    found = mpq.tune(task(net, held_out=alike), before, QUICK)

    record = told(found)
    assert not record.is_kept
    assert record.why == "unseen examples do not lose less by it, beyond chance"
    assert record.loss is not None
    assert record.loss_before is not None
    assert record.loss < record.loss_before
    assert found.assignment == before.assignment


def test_few_examples_prove_nothing(net: nn.Module, before: mpq.SearchResult) -> None:
    """Three are too few to choose by and to decide by; nothing is trained then."""
    found = mpq.tune(task(net, held_out=[batches(1)[0][:6]]), before, QUICK)

    assert told(found).why == "it takes 4 unseen examples to choose an epoch and to decide"
    assert told(found).epochs == ()


def test_formats_without_scales_are_named(net: nn.Module) -> None:
    """What cannot move is told, and a network in which nothing can move is left as it is."""
    asked = task(net, candidates=["mxfp4", "fp16"], tune="scales:epochs=1")

    result = mpq.search(asked, {"effective_bits": 8}, sensitivity="weight-error")

    assert set(told(result).left) == {"conv", "grouped", "hidden", "head"}
    assert told(result).left["head"] in ("scales of mxfp4 are powers of two", "fp16 has no scale")


def test_a_network_without_gradients_keeps_its_answer() -> None:
    """After a whole search that is told, and is no error."""

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(72, 5)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x.flatten(1)).detach()
            return found

    result = searched(Detached().eval(), tune=QUICK)

    assert not told(result).is_kept
    assert told(result).why.startswith("the network cannot be differentiated: the output does not")


def test_an_objective_is_kept(net: nn.Module, before: mpq.SearchResult) -> None:
    """Where the tuned answer is measured to break it, the untuned one stays."""
    seen, rest = Calibration.of(batches(12)).split(0.5)
    examples = Examples.of(seen, *rest.split(0.5), 0.0)
    tuner = Tuner(net, examples, TUNINGS.build(QUICK), 0)

    found = tuner.result(before, accepts=lambda measured: measured.divergence < 0)

    assert told(found).why == "with it the answer does not keep the objective's limit"
    assert found.assignment == before.assignment


class Tied(nn.Module):
    """An embedding whose weight is the head's, a layer that is called twice, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 16)
        self.twice = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        words = self.words(tokens)
        found: Tensor = self.head(self.norm(self.twice(torch.relu(self.twice(words))) + words))
        return found


def test_tied_weights_stay_tied() -> None:
    """Codes of an embedding and a head that share a weight are the same codes afterwards."""
    torch.manual_seed(0)
    model = Tied().eval()
    generator = torch.Generator().manual_seed(1)
    data = [torch.randint(11, (16, 6), generator=generator) for _ in range(12)]

    result = mpq.search(
        task(model, data=data, candidates=["w3g8", "w8"], tune=QUICK), {"effective_bits": 6},
        sensitivity="weight-error",
    )  # fmt: skip

    assert told(result).is_kept
    assert result.assignment.weights is not None
    words, head = (result.assignment.weights.by_layer[name].parts() for name in ("words", "head"))
    assert all(np.array_equal(words[part], head[part]) for part in words)


@pytest.mark.parametrize("transforms", [("equalize",), ("smooth",)])
def test_a_transformed_network_is_tuned(transforms: tuple[str, ...], tmp_path: Path) -> None:
    """After what was done to it, which is done again before."""
    from tests.transforms.networks import outlier_net

    model = outlier_net()
    x = torch.randn(192, 16, generator=torch.Generator().manual_seed(0))
    asked = mpq.Task(
        model, [x[:128]], [x[128:]], candidates=["w4a4"], rounding="nearest",
        transforms=transforms, tune="all:epochs=3,lr=0.01,batch_size=16,blocks=true",
    )  # fmt: skip

    result = mpq.search(asked, {"weight_bytes": 10_000})
    result.save(tmp_path)

    assert told(result).epochs
    loaded = mpq.Assignment.load(tmp_path)
    measured = mpq.evaluate(model, loaded, [x[128:]])["quantized"]
    assert measured.divergence == pytest.approx(result.measured.divergence, rel=1e-6)


def test_the_model_is_left_as_found(net: nn.Module, before: mpq.SearchResult) -> None:
    """Weights, hooks, gradients, mode, and the generators."""
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()

    mpq.tune(task(net), before, QUICK)

    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_two_searches_give_the_same(net: nn.Module, within: mpq.SearchResult) -> None:
    """The seed says all."""
    again = searched(net, tune=QUICK)

    assert again.assignment == within.assignment
    assert told(again) == told(within)


def test_killed_and_called_again_it_goes_on(
    net: nn.Module, before: mpq.SearchResult, after: mpq.SearchResult, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With the outcome that it has without; in the end no state is left."""
    epoch, calls = Descent._epoch, list[int]()

    def dying(self: Descent, number: int, *rest: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        epoch(self, number, *rest)

    def counting(self: Descent, number: int, *rest: Any) -> None:
        calls.append(number)
        epoch(self, number, *rest)

    monkeypatch.setattr(Descent, "_epoch", dying)
    with pytest.raises(KeyboardInterrupt):
        mpq.tune(task(net), before, QUICK, folder=tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    monkeypatch.setattr(Descent, "_epoch", counting)

    found = mpq.tune(task(net), before, QUICK, folder=tmp_path)

    assert calls == [2]
    assert found.run_id == after.run_id
    assert found.assignment == after.assignment
    assert not (tmp_path / CHECKPOINT_FILE).exists()


def test_people_are_told(before: mpq.SearchResult, after: mpq.SearchResult) -> None:
    """What was tuned, what it gave, on how many examples."""
    console = Console(record=True, width=300)

    print_result(after, console)

    printed = " ".join(console.export_text().split())
    assert (
        "tuning (all:epochs=3,lr=0.01,code_lr=0.01,batch_size=16) kept; 12 unseen examples lose"
        in printed
    )
    assert "4 biases and norms tuned or corrected; see tuned.safetensors" in printed
    assert "(--rounding nearest, and tuned)" in printed
    del before


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ("scale", UnknownNameError, "no tuning 'scale'; did you mean 'scales'"),
        ("scales:epochs=0", InputError, "scales:epochs is at least 1; got 0"),
        ("all:lr=0", InputError, "all:lr is between 0 and 1; got 0"),
        ("all:code_lr=2", InputError, "all:code_lr is between 0 and 1; got 2"),
        ("all:share=1", InputError, "all needs a share between 0 and 1; got 1"),
        ("scales:batch_size=0", InputError, "scales:batch_size is at least 1; got 0"),
    ],
)
def test_what_means_nothing_is_refused(
    net: nn.Module, before: mpq.SearchResult, given: str, error: type[Exception], why: str
) -> None:
    """Before anything is run, by the task and by the verb."""
    with pytest.raises(error, match=why):
        task(net, tune=given)
    with pytest.raises(error, match=why):
        mpq.tune(task(net), before, given)


def test_what_is_no_result_is_refused(net: nn.Module, before: mpq.SearchResult) -> None:
    """A model instead of a task, an assignment instead of a result, another network's result."""
    with pytest.raises(InputError, match="tune takes a Task"):
        mpq.tune(net, before)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"mpq.tune\(task, mpq.load\('runs/x'\)\); got a Assignment"
    ):
        mpq.tune(task(net), before.assignment)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="belongs to another network"):
        mpq.tune(task(Tied().eval()), before)


@pytest.mark.parametrize("verb", ["frontier", "compare"])
def test_verbs_of_many_answers_refuse_it(net: nn.Module, verb: str) -> None:
    """One answer is tuned."""
    with pytest.raises(InputError, match="leave out tune"):
        getattr(mpq, verb)(task(net, tune="scales"), limits=LIMIT)


def run(*args: str) -> Any:
    return CliRunner().invoke(app, [*args, "--quiet"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the built-in network."""
    path = tmp_path_factory.mktemp("runs") / "x"
    found = run(
        "search", "--limit", "effective_bits=3", "--precisions", "w2,w3,w4", "--rounding",
        "nearest", "--sensitivity", "weight-error", "--output", str(path),
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    return path


def test_the_command_line(folder: Path) -> None:
    """A folder beside the run's holds the tuned result; the run's own stays."""
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}

    found = run("tune", str(folder), "--what", "scales:epochs=1,lr=0.003,batch_size=16")

    assert found.exit_code == 0, found.output
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept
    result = mpq.load(folder.with_name("x-tuned"))
    assert told(result).is_kept
    assert not (folder.with_name("x-tuned") / CHECKPOINT_FILE).exists()
    evaluated = run("evaluate", str(folder.with_name("x-tuned")))
    quantized = json.loads(evaluated.stdout)["quantized"]
    halves = torch.cat([batch for batch, _ in demo.held_out()])
    assert quantized["num_examples"] == len(halves)
    assert result.measured.num_examples == len(halves) // 2


def test_the_command_line_refuses(folder: Path, tmp_path: Path) -> None:
    """What is no run, the run's own folder, a network without its data, a misspelled name."""
    own = tmp_path / "own.py"
    own.write_text("from mpq.demo import make_net")
    cases = {
        ("tune", str(tmp_path / "nothing")): "nothing/assignment.json",
        ("tune", str(folder), "--output", str(folder)): "is the folder of the search",
        ("tune", str(folder), "--model", f"{own}:make_net"): "--data",
        ("tune", str(folder), "--what", "scales:epochs=0"): "at least 1",
    }
    for given, why in cases.items():
        found = run(*given)
        assert found.exit_code == 2, found.output
        assert why in found.output


def test_a_search_that_tunes_from_the_command_line(tmp_path: Path) -> None:
    """``--tune`` holds back, tunes and says so in the result."""
    found = run(
        "search", "--limit", "effective_bits=3", "--precisions", "w2,w3,w4", "--rounding",
        "nearest", "--sensitivity", "weight-error",
        "--tune", "scales:epochs=1,lr=0.003,batch_size=16", "--output", str(tmp_path / "x"),
    )  # fmt: skip

    assert found.exit_code == 0, found.output
    assert told(mpq.load(tmp_path / "x")).share == 0.25
