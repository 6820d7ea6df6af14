"""How a result was made, as its page says it: network, data, what the defaults came to."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import mpq
from mpq.cli.named import named
from mpq.cli.task_options import SourceOptions
from mpq.network.batch import Batch
from mpq.network.examples import Calibration
from mpq.quantization.stored import StoredWeights
from mpq.report.page.made import Made
from mpq.report.page.render import page_of
from mpq.sensitivity.checked import SpotCheck
from mpq.workflows.page.facts import facts_of
from mpq.workflows.page.made import made_rows
from mpq.workflows.result import SearchResult
from mpq.workflows.subject import Subject, inputs_of
from tests.recipes.reference import data, tiny
from tests.report.made_up import blocks, curve, made_up

AUTO = SpotCheck((), "nats", 1.0)


def test_a_search_from_python_names_its_network_and_data(tmp_path: Path) -> None:
    """Class, layers, weights, examples of both kinds and their shape; all of the saved files."""
    network = tiny()
    task = mpq.Task(network, data, candidates=["w4a4", "w8a8"], rounding="nearest")
    given = Calibration(data)

    result = mpq.search(task, ["bit_operations=12000"], sensitivity="weight-error")
    result.save(tmp_path)
    rows = dict(made_rows(mpq.load(tmp_path)))

    weights = sum(x.weight.numel() for x in network.modules() if isinstance(x, nn.Linear))
    held_out = round(given.num_examples / 4)
    shape = list(given.first().tensors[0].shape)
    shape[0] = min(shape[0], given.num_examples - held_out)
    assert rows["network"] == f"class {type(network).__qualname__}"
    assert rows["quantizable layers"].endswith(f"with {weights:,} weights")
    assert rows["calibration examples"] == f"{given.num_examples - held_out:,}"
    assert rows["held-out examples"].startswith(f"{held_out:,}; a share of the data for calibr")
    assert rows["first calibration batch"] == f"float32 {shape}"
    assert rows["ranges of inputs"] == "mse"
    assert rows["rounding of weights"] == "nearest"


def test_a_command_names_what_it_loaded(tmp_path: Path) -> None:
    """The built-in demonstration as such; of one's own network what was given, none invented."""
    demo = named(SourceOptions(), None)
    own = named(SourceOptions("net.py:make", Path("w.pt"), "net.py:batches"), None)
    made = Made().by(("mpq", "search"), own)
    result = replace(made_up(blocks(6)), made=Made.from_json(made.to_json("run")))

    rows = dict(made_rows(result))

    assert demo == {
        "network": "mpq.demo:make_net, the built-in demonstration",
        "calibration": "mpq.demo:calibration",
        "held_out": "mpq.demo:held_out",
    }
    assert rows["network"] == "net.py:make; w.pt"
    assert rows["calibration examples"].endswith("net.py:batches")
    assert rows["held-out examples"] == "500"


def test_what_an_older_record_does_not_say_is_not_known() -> None:
    """And it counts all examples that it was given."""
    result = made_up(blocks(6))

    rows = dict(made_rows(result))
    page = page_of(facts_of(result, curve(result))).decode()

    unknown = {name for name, told in rows.items() if not told}
    assert {"network", "first calibration batch", "ranges of inputs"} <= unknown
    assert rows["calibration examples"].startswith("512, with the held-out ones where")
    assert '<th scope="row">ranges of inputs</th><td>not known</td>' in page


def test_names_of_networks_and_data_are_text() -> None:
    """Whatever they hold, and however long they are."""
    made = made_up(blocks(6))
    name = "<script>window.hacked = 1</script>\n'\"😀" + "x" * 300
    subject = Subject(name, 3, is_split=False, batch=f"{name}: int64 [2]")
    result = replace(
        made,
        provenance=replace(made.provenance, subject=subject),
        made=Made(("mpq", "search"), sources={"network": name}),
    )

    page = page_of(facts_of(result, curve(result))).decode()

    assert "<script>window" not in page
    assert "x" * 200 not in page
    assert "&lt;script&gt;window.hacked" in page


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (AUTO, "auto (sketch)"),
        (replace(AUTO, repaired=("a", "b")), "auto (sketch, 2 of 6 layers measured)"),
        (replace(AUTO, raised=("a",)), "auto (sketch, 1 raised)"),
        (replace(AUTO, fallback="no gradient"), "auto (measured: no gradient)"),
        (None, "auto"),
    ],
)
def test_what_the_default_estimator_came_to(check: SpotCheck | None, told: str) -> None:
    """Predicted, mended or measured: by the spot check."""
    made = made_up(blocks(6))
    problem = replace(made.problem, loss=replace(made.problem.loss, name="auto"))
    provenance = replace(made.provenance, estimator="auto")
    result = replace(made, problem=problem, provenance=provenance, spot_check=check)

    assert dict(made_rows(result))["estimator"] == told


@pytest.mark.parametrize(
    ("unhelped", "told"),
    [
        ((), "auto (coordinate-descent)"),
        (("w2",), "auto (coordinate-descent; nearest at w2)"),
        (("w2", "w3", "w4", "w6", "w8"), "auto (nearest)"),
    ],
)
def test_what_the_default_rounding_came_to(unhelped: tuple[str, ...], told: str) -> None:
    """Where unseen examples did not say that it helps, to nearest."""
    result = rounded(unhelped)

    assert dict(made_rows(result))["rounding of weights"] == told


def rounded(unhelped: tuple[str, ...]) -> SearchResult:
    """A result with codes, but for these precisions of weights."""
    made = made_up(blocks(6))
    provenance = replace(made.provenance, rounding="auto", rounding_unhelped=unhelped)
    assignment = replace(made.assignment, weights=StoredWeights("auto", {}))
    return replace(made, provenance=provenance, assignment=assignment)


def test_inputs_are_told_by_name_and_shape() -> None:
    """Those of a dict by its keys, nested ones too, lists of images counted, many shortened."""
    plain, ids = torch.zeros(2, 3), torch.zeros(2, 7, dtype=torch.int64)
    images = [torch.zeros(3, 4, 4), torch.zeros(3, 5, 4)]

    assert inputs_of(Batch.of((plain, (ids, ids), plain))) == (
        "float32 [2, 3], int64 [2, 7], int64 [2, 7], float32 [2, 3]"
    )
    assert inputs_of(Batch.of({"ids": ids, "mask": plain})) == (
        "ids: int64 [2, 7], mask: float32 [2, 3]"
    )
    assert inputs_of(Batch.of(((images,), None))) == "2 images"
    assert inputs_of(Batch.of({str(k): plain for k in range(11)})).endswith(", 3 more")
