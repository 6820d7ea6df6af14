"""Searches of transformed networks: tried, kept, saved, done again by every export."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import mpq
from mpq.cli.console import print_frontier, print_result
from mpq.errors import (
    FileFormatError,
    InputError,
    MismatchError,
    ModelError,
    MpqError,
    UnknownNameError,
)
from mpq.network.reparametrization import TRANSFORMS_FILE, Scaling
from mpq.network.reparametrized import reparametrized
from mpq.transforms import Found
from mpq.transforms.smooth import Smooth
from mpq.workflows.setup import Prepared
from mpq.workflows.transformed import _Judge
from tests.transforms.networks import OUTLIER, Words, outlier_net, outlier_stream

X = torch.randn(192, 16, generator=torch.Generator().manual_seed(0))
LIMIT = {"weight_bytes": 10_000}


def task(net: nn.Module, transforms: tuple[str, ...], **given: Any) -> mpq.Task:
    """A search of w4a4 alone, unless it is told otherwise."""
    given = {"candidates": ["w4a4"], "rounding": "nearest", **given}
    return mpq.Task(net, [X[:64], X[64:128]], [X[128:]], transforms=transforms, **given)


def test_planted_outliers_lose_little_after_smoothing() -> None:
    """One channel of a hundred times the others' size costs a 4 bit grid all of its levels."""
    net = outlier_net()

    plain, smooth = (mpq.search(task(net, t), LIMIT) for t in ((), ("smooth",)))

    before, after = (r.assignment.metadata.measured_loss for r in (plain, smooth))
    assert before is not None
    assert after is not None
    assert after < before / 10
    assert smooth.assignment.reparametrization is not None
    assert not smooth.provenance.transforms_unhelped


def stream_task(transform: str, precision: str, **given: Any) -> mpq.Task:
    """A search of ``outlier_stream`` with words, or without a transformation."""
    words = torch.randint(200, (192,), generator=torch.Generator().manual_seed(0))
    return mpq.Task(
        outlier_stream(), [words[:128]], [words[128:]], candidates=[precision],
        rounding="nearest", transforms=[transform] if transform else [], **given,
    )  # fmt: skip


def test_planted_outliers_are_spread_by_a_rotation() -> None:
    """Of a stream, whose channels have no factors: less than a quarter of the loss is left."""
    plain, turned = (mpq.search(stream_task(t, "w8a4"), LIMIT) for t in ("", "rotate"))

    before, after = (r.assignment.metadata.measured_loss for r in (plain, turned))
    assert before is not None
    assert after is not None
    assert after < before / 4
    assert not turned.provenance.transforms_unhelped


def test_planted_shifts_are_taken_away() -> None:
    """One channel that lies far from 0 costs a 4 bit grid most of its levels."""
    net = outlier_net()[:2].eval()
    with torch.no_grad():
        net.get_parameter("0.weight")[OUTLIER] /= 100
        net.get_parameter("0.bias")[OUTLIER] += 50

    plain, moved = (mpq.search(task(net, t), LIMIT) for t in ((), ("shift",)))

    before, after = (r.assignment.metadata.measured_loss for r in (plain, moved))
    assert before is not None
    assert after is not None
    assert after < before / 10
    assert moved.assignment.reparametrization is not None


def test_a_rotation_is_done_again(tmp_path: Path) -> None:
    """Saved, loaded, quantized and exported: the very outputs that the search measured."""
    pytest.importorskip("onnxruntime")
    made = stream_task("rotate:learned=true,steps=3", "w8a8", to="onnx-qdq")
    result = mpq.search(made, LIMIT)
    if result.assignment.reparametrization is None:
        pytest.fail(str(result.provenance.transforms_unhelped))
    result.save(tmp_path)
    net, unseen = outlier_stream(), made.held_out

    loaded = mpq.Assignment.load(tmp_path)
    measured = mpq.evaluate(net, loaded, unseen)["quantized"]
    exported = mpq.export(
        loaded, tmp_path / "x", "onnx-qdq", net, made.calibration, held_out=unseen
    )

    assert loaded == result.assignment
    assert measured.divergence == pytest.approx(loaded.metadata.measured_loss, rel=1e-4)
    assert exported.deviation is not None
    assert exported.deviation < 1e-3


def test_an_untied_head_is_a_layer_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has bytes and a precision, in the search and in what repeats it."""
    # Whether it helps a network of random numbers is a matter of chance.
    monkeypatch.setattr("mpq.workflows.transformed.is_above_chance", lambda _: True)
    torch.manual_seed(0)
    net, ids = Words(is_tied=True).eval(), torch.randint(13, (64, 7))
    with torch.no_grad():
        net.get_parameter("words.weight")[:, 3] *= 20
        net.get_parameter("norm.weight").uniform_(0.5, 2)
    asked = mpq.Task(
        net, [ids[:48]], [ids[48:]], candidates=["w8a4"], rounding="nearest",
        transforms=["rotate:untie=true"],
    )  # fmt: skip

    result = mpq.search(asked, {"weight_bytes": 100_000})

    assert not result.provenance.transforms_unhelped
    assert {"words", "head"} <= result.assignment.precisions.keys()
    (row,) = (layer for layer in result.layers if layer.name == "head")
    assert row.weight_of is None
    again = mpq.quantize(net, result.assignment)
    assert again.get_parameter("head.weight") is not again.get_parameter("words.weight")
    assert net.get_submodule("head").weight is net.get_submodule("words").weight


def test_what_was_done_is_done_again(tmp_path: Path) -> None:
    """Saved, loaded, quantized: the very outputs that the search measured, of the model given."""
    net = outlier_net()
    kept = {name: p.clone() for name, p in net.named_parameters()}
    result = mpq.search(task(net, ("equalize", "smooth")), LIMIT)
    result.save(tmp_path)

    loaded = mpq.Assignment.load(tmp_path)
    measured = mpq.evaluate(net, loaded, [X[128:]])["quantized"]

    assert loaded == result.assignment
    assert measured.divergence == pytest.approx(loaded.metadata.measured_loss, rel=1e-4)
    assert mpq.load(tmp_path).assignment == result.assignment
    assert all(torch.equal(p, kept[name]) for name, p in net.named_parameters())


def test_an_export_computes_the_transformed_network(tmp_path: Path) -> None:
    """ONNX Runtime on the file, beside the simulation."""
    pytest.importorskip("onnxruntime")
    net = outlier_net()
    found = mpq.search(task(net, ("smooth",), candidates=["w8a8"], to="onnx-qdq"), LIMIT)

    if found.assignment.reparametrization is None:
        pytest.fail(str(found.provenance.transforms_unhelped))
    exported = mpq.export(
        found.assignment, tmp_path / "x", "onnx-qdq", net, [X[:64]], held_out=[X[128:]]
    )

    assert exported.deviation is not None
    assert exported.deviation < 1e-3


@pytest.mark.parametrize("name", ["modelopt", "text", "text:style=csv", "text:style=json"])
def test_recipes_and_texts_are_refused(name: str, tmp_path: Path) -> None:
    """They are for the network as it came."""
    net = outlier_net()
    result = mpq.search(task(net, ("smooth",)), LIMIT)

    with pytest.raises(InputError, match="search without --transform"):
        mpq.export(result.assignment, tmp_path, name, net, [X[:8]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_transformations_are_one(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are rounded to the network's dtype once, in the search as by who repeats it."""
    monkeypatch.setattr(_Judge, "why_unhelped", lambda *_: "")
    net = outlier_net().to(dtype)
    data = [X[:64].to(dtype), X[64:128].to(dtype)]
    asked = mpq.Task(net, data, candidates=["w4a4"], transforms=["equalize", "smooth"])

    found = Prepared.of(asked).transformed

    assert found is not None
    assert found.reparametrization is not None
    assert found.reparametrization.transforms == ("equalize", "smooth")
    again = dict(reparametrized(net, found.reparametrization.changes).named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in found.model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rotation_in_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in float64 and rounded once: outputs are equal as far as the dtype goes."""
    monkeypatch.setattr(_Judge, "why_unhelped", lambda *_: "")
    net, asked = outlier_stream().to(dtype), stream_task("rotate", "w8a8")

    found = Prepared.of(replace(asked, model=net)).transformed

    assert found is not None
    assert found.reparametrization is not None
    again = dict(reparametrized(net, found.reparametrization.changes).named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in found.model.named_parameters())
    assert all(p.dtype == dtype for p in again.values())


class Experts(nn.Module):
    """Examples go to the second one where they begin with a large number."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(16)
        self.experts = nn.ModuleList(nn.Linear(16, 4) for _ in range(2))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        read, rare = self.norm(x), x[:, 0] > 3
        found: torch.Tensor = self.experts[0](read)
        return torch.where(rare[:, None], self.experts[1](read), found) if rare.any() else found


def test_what_the_traced_examples_do_not_reach_keeps_a_network_as_it_is() -> None:
    """It may read what is scaled: of the other expert's examples nobody knows."""
    found = Prepared.of(mpq.Task(
        Experts(), [X[:64].clamp(max=2)], candidates=["w4a4"], transforms=["smooth"],
    )).transformed  # fmt: skip

    assert found is not None
    assert found.reparametrization is None
    assert "do not reach experts.1.weight" in found.unhelped["smooth"]


class Sparse(nn.Module):
    """An expert without examples is called as well, with none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.rare = outlier_net(), outlier_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        is_rare, found = x[:, 0] > 3, torch.zeros(len(x), 8)
        found[is_rare] = self.rare(x[is_rare])
        found[~is_rare] = self.usual(x[~is_rare])
        return found


def test_an_expert_that_only_unseen_examples_reach_is_no_error() -> None:
    """Ranges are calibrated on all examples, and not on those alone that factors are found with."""
    data = X[:64].clamp(max=2)
    data[-8:, 0] = 4

    found = Prepared.of(mpq.Task(
        Sparse().eval(), [data], [X[128:]], candidates=["w4a4"], transforms=["smooth"],
    )).transformed  # fmt: skip

    assert found is not None
    assert found.reparametrization is not None


def test_a_single_example_judges_nothing() -> None:
    """Then none is used, and that is said."""
    net = outlier_net()
    found = Prepared.of(
        mpq.Task(net, [X[:1]], [X[128:]], candidates=["w4a4"], transforms=["smooth"])
    ).transformed

    assert found is not None
    assert "single calibration example" in found.unhelped["smooth"]


@pytest.mark.parametrize("given", [iter(["smooth"]), {"smooth"}, [Smooth()], 3])
def test_transformations_are_a_list_of_names(given: Any) -> None:
    """Anything else is refused before anything runs."""
    with pytest.raises(InputError, match=r"transforms takes a list of names of mpq\.TRANSFORMS"):
        task(outlier_net(), given)


def test_a_frontier_is_not_rounded_again() -> None:
    """Codes are made again for one answer."""
    with pytest.raises(InputError, match="a frontier has many answers"):
        mpq.frontier(task(outlier_net(), (), rounding="auto", sequential_rounding=True))


def test_files_of_one_run_belong_together(tmp_path: Path) -> None:
    """Without its file, with another, or beside one that it does not name, it is no assignment."""
    net = outlier_net()
    assignment = mpq.search(task(net, ("smooth",)), LIMIT).assignment
    assignment.save(tmp_path)

    with pytest.raises(FileFormatError, match="Assignment.load"):
        mpq.Assignment.from_json(assignment.to_json())
    content = (tmp_path / TRANSFORMS_FILE).read_bytes()
    (tmp_path / TRANSFORMS_FILE).write_bytes(content + b" ")
    with pytest.raises(FileFormatError, match="SHA-256 is another"):
        mpq.Assignment.load(tmp_path)
    (tmp_path / TRANSFORMS_FILE).unlink()
    with pytest.raises(FileFormatError, match="cannot be read"):
        mpq.Assignment.load(tmp_path)
    plain = replace(assignment, reparametrization=None)
    plain.save(tmp_path)
    (tmp_path / TRANSFORMS_FILE).write_bytes(content)
    with pytest.raises(FileFormatError, match="lies beside it"):
        mpq.Assignment.load(tmp_path)
    plain.save(tmp_path)
    assert mpq.Assignment.load(tmp_path) == plain


def test_another_network_is_refused() -> None:
    """Its parameters have other shapes."""
    assignment = mpq.search(task(outlier_net(), ("smooth",)), LIMIT).assignment
    other = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 8)).eval()

    with pytest.raises(MismatchError, match="has 5 entries along axis 0, not 16"):
        mpq.quantize(other, assignment)


def test_what_does_not_help_is_not_used() -> None:
    """No outliers, no gain beyond chance: the network stays, and the reason is told."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 8)).eval()

    result = mpq.search(task(net, ("smooth", "equalize")), LIMIT)

    assert result.assignment.reparametrization is None
    assert set(result.provenance.transforms_unhelped) == {"smooth", "equalize"}
    assert "no place for it" in result.provenance.transforms_unhelped["smooth"]
    assert result.provenance.untransformed == {
        "smooth 0.weight": "reads what the network's input gives",
        "equalize 0.weight": "reads what the network's input gives",
    }


def test_a_transformation_that_hurts_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that make outliers where there were none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    undone = mpq.search(task(outlier_net(), ("smooth",)), LIMIT).assignment.reparametrization
    assert undone is not None
    harmful = tuple(
        replace(c, factors=np.reciprocal(c.factors))
        for c in undone.changes
        if isinstance(c, Scaling)
    )
    monkeypatch.setattr(Smooth, "found", lambda *_: Found(harmful, 2, {}))

    prepared = Prepared.of(task(net, ("smooth",)))

    assert prepared.transformed is not None
    assert prepared.transformed.model is net
    assert "lost more, or less by chance" in prepared.transformed.unhelped["smooth"]


def test_a_changed_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reparametrization that is none: half of its changes."""
    net = outlier_net()
    done = mpq.search(task(net, ("smooth",)), LIMIT).assignment.reparametrization
    assert done is not None
    monkeypatch.setattr(Smooth, "found", lambda *_: Found(done.changes[:1], 1, {}))

    with pytest.raises(ModelError, match="changes the network's outputs by"):
        Prepared.of(task(net, ("smooth",)))


@pytest.mark.parametrize(
    ("transforms", "error", "why"),
    [
        (("smoth",), UnknownNameError, "smooth"),
        (("smooth", "smooth:grid=2"), InputError, "done once"),
        ("smooth", InputError, "takes a list"),
    ],
)
def test_misspelled_transforms(transforms: Any, error: type[Exception], why: str) -> None:
    """Refused when the task is made."""
    with pytest.raises(error, match=why):
        task(outlier_net(), transforms)


def test_the_terminal_tells(tmp_path: Path) -> None:
    """What was done, what was not used, and where the graph does not allow it."""
    result = mpq.search(task(outlier_net(), ("smooth", "equalize")), LIMIT)
    console = Console(record=True, width=4000)

    print_result(result, console)

    told = console.export_text()
    assert (
        f"network transformed before rounding (smooth); what was done is in {TRANSFORMS_FILE}"
        in told
    )
    assert "weights that no transformation fits: equalize 1.weight" in told
    result.save(tmp_path)
    stated = json.loads((tmp_path / "result.json").read_text())["provenance"]
    assert stated["transforms"] == ["smooth", "equalize"]


def test_patterns_that_match_nothing_are_refused_before_anything_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial takes long on a large network."""
    monkeypatch.setattr(Smooth, "found", lambda *_: pytest.fail("tried"))
    rules = mpq.Rules(fix={"nope*": "w4a4"})

    with pytest.raises(InputError, match="nope"):
        Prepared.of(task(outlier_net(), ("smooth",), rules=rules))


@pytest.mark.parametrize(
    ("limits", "given", "why"),
    [
        ({"weight_bytes": 1}, {}, "weight_bytes"),
        ({"no_such": 1}, {}, "no_such"),
        ({"weight_bytes": 10_000}, {"fix": {"1": "w8a8"}, "allow": {"1": ["w4a4"]}}, "--allow"),
    ],
    ids=["limit", "resource", "rules"],
)
def test_what_cannot_be_met_is_refused_before_anything_is_tried(
    limits: Any, given: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits, resources and rules are known without a trial."""
    monkeypatch.setattr(Smooth, "found", lambda *_: pytest.fail("tried"))
    rules = mpq.Rules(**given)

    with pytest.raises(MpqError, match=why):
        mpq.search(task(outlier_net(), ("smooth",), rules=rules), limits)


def test_a_frontier_says_what_was_done() -> None:
    """Its points are of the transformed network, and its file says so."""
    found = mpq.frontier(
        task(outlier_net(), ("smooth", "equalize"), candidates=["w4a4", "w8a8"]), num_points=3
    )

    assert "smooth" in found.transforms
    assert {*found.transforms, *found.transforms_unhelped} == {"smooth", "equalize"}
    stated = json.loads(found.to_json())
    assert stated["transforms"] == [*found.transforms]
    console = Console(record=True, width=4000)
    print_frontier(found, console)
    done = ",".join(found.transforms)
    assert f"all points are of the network with --transform {done}" in console.export_text()
