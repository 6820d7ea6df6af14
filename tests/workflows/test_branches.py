"""Searches among formats with branches."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import mpq
from mpq.errors import InputError, PrecisionError
from mpq.quantization.precision import Precision
from mpq.quantization.stored import WEIGHTS_FILE
from mpq.workflows.in_order import InOrder
from mpq.workflows.method import Method
from mpq.workflows.room_for_branches import with_room
from mpq.workflows.sentences import _rounding
from mpq.workflows.setup import Prepared
from mpq.workflows.streamable import check_streamed
from tests.workflows.networks import Net, batches

CANDIDATES = ["w2g16", "w2g16+s1%", "w2g16+s4%", "w2g16+r1", "w6g16"]


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("rounding", ["nearest", "auto"])
def test_a_search_may_choose_branches(rounding: str, tmp_path: Path) -> None:
    """Within its bits; saved and loaded, the network computes the same, bit for bit."""
    task = mpq.Task(net(), batches(3), candidates=CANDIDATES, rounding=rounding)
    result = mpq.search(task, ["effective_bits=1x:w2g16+s4%"], sensitivity="weight-error")

    result.save(tmp_path)
    again = mpq.load(tmp_path).assignment

    branched = [x.name for x in again.layers if x.precision.weight.branch is not None]
    assert branched
    assert again == result.assignment
    assert again.weights is not None
    assert set(branched) <= again.weights.by_layer.keys()
    with torch.no_grad():
        one, other = (mpq.quantize(net(), a)(batches(1)[0]) for a in (result.assignment, again))
    assert torch.equal(one, other)
    measured = mpq.evaluate(net(), again, batches(5)[4:])["quantized"]
    assert measured.divergence > 0


@pytest.mark.parametrize("spelled", ["w2g16+s4%", "w2g16+r2"])
def test_codes_go_by_the_branch_that_was_found(spelled: str, tmp_path: Path) -> None:
    """Not by one that is fitted anew: of an assignment without its weights that may differ."""
    task = mpq.Task(net(), batches(4), candidates=[spelled], rounding="nearest")
    result = mpq.search(task, [f"effective_bits=1x:{spelled}"], sensitivity="weight-error")
    result.save(tmp_path)

    found = mpq.load(tmp_path).assignment.weights

    assert found is not None
    assert set(found.by_layer) == {"conv", "grouped", "hidden", "head"}
    precision = Precision.parse(spelled)
    for name, weight in found.by_layer.items():
        shape = tuple(dict(net().named_parameters())[f"{name}.weight"].shape)
        assert weight.why_not(precision.weight, shape) == ""
        without = replace(weight, branch=None)
        assert "have no branch" in without.why_not(precision.weight, shape)


def test_shares_and_ranks_lower_the_predicted_loss() -> None:
    """Layer by layer, by squared errors of weights."""
    spelled = ["w2", "w2+s1%", "w2+s5%", "w2+s20%", "w2+r1", "w2+r2", "w2+r4"]
    task = mpq.Task(net(), batches(2), candidates=spelled, rounding="nearest")

    table = mpq.search(task, ["effective_bits=8"], sensitivity="weight-error").problem.loss

    plain, *rest = table.values.T
    for columns in (rest[:3], rest[3:]):
        for less, more in pairwise((plain, *columns)):
            assert (more <= less * (1 + 1e-9)).all()


def test_a_layer_is_offered_no_rank_beyond_its_own() -> None:
    """The head has 5 outputs; what it is fixed at must fit, and something must."""
    task = mpq.Task(net(), batches(2), candidates=["w2", "w2+r6", "w2+r5"])

    prepared = Prepared.of(task)

    head = tuple(map(Precision.parse, ("w2", "w2+r5")))
    assert prepared.allowed == {"head": head}
    layers = prepared.network.layers
    too_much = Precision.parse("w2+r6")
    with pytest.raises(PrecisionError, match="'head' at w2.r6a32: a rank of 6 is more than"):
        with_room(layers, (too_much,), {}, {})
    with pytest.raises(PrecisionError, match="'head' at w2.r6a32: a rank of 6 is more than"):
        with_room(layers, head, {}, {"head": too_much})


def test_a_network_that_is_streamed_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch is fitted to a whole weight: refused before anything runs."""
    task = mpq.Task(net(), batches(2), candidates=["w2", "w2+r2"])
    monkeypatch.setattr(type(task), "streamed", "it does not fit")

    with pytest.raises(InputError, match=r"a branch beside codes \(w2.r2a32\) is not done so"):
        check_streamed(task, Method.of("sketch", "auto", 0))


def test_tuning_leaves_a_branch_where_it_is(tmp_path: Path) -> None:
    """Scales and codes move; what is added stays, and is saved with them."""
    task = mpq.Task(
        net(), batches(4), candidates=["w2g16+r2"], rounding="nearest", tune="all:epochs=1"
    )

    result = mpq.search(task, ["effective_bits=1x:w2g16+r2"], sensitivity="weight-error")

    assert result.assignment.weights is not None
    for weight in result.assignment.weights.by_layer.values():
        assert weight.branch is not None


def test_codes_may_be_rounded_again_layer_by_layer() -> None:
    """With a branch that is fitted anew, to the inputs of the network quantized so far."""
    task = mpq.Task(net(), batches(6), candidates=["w2g16+s4%"], rounding="gptq")
    prepared = Prepared.of(task)
    on, spelled = prepared.asked, Precision.parse("w2g16+s4%")

    cells, _ = InOrder(on, dict.fromkeys(on.names, spelled), task.weight_rounding).codes()

    assert cells
    for (name, tensor_format), weight in cells.items():
        shape = tuple(on.network.weight(name).shape)
        assert weight.why_not(tensor_format, shape) == ""
        assert weight.branch is not None


@pytest.mark.parametrize(
    ("rounding", "told"), [("nearest", ""), ("gptq", "4 of 4 weights rounded with regard to")]
)
def test_what_is_told_of_weights_with_branches(rounding: str, told: str) -> None:
    """They are kept in either case, and rounded with regard to data in one of them."""
    task = mpq.Task(net(), batches(3), candidates=["w2g16+s4%"], rounding=rounding)

    result = mpq.search(task, ["effective_bits=1x:w2g16+s4%"], sensitivity="weight-error")

    lines = list(_rounding(result))
    assert f"4 weights have branches beside their codes; both are in {WEIGHTS_FILE}" in lines
    assert any(line.startswith(told) for line in lines)
    assert len(lines) == (2 if told else 1)
