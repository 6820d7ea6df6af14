"""Targets as classes: where they are counted, and what is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.errors import DataError
from mpq.network.examples import Batch
from mpq.network.targets import class_targets, cross_entropy, target_weights

READERS = (
    "fisher:labels=targets",
    "first-order:labels=targets",
    "hessian-form:loss=cross-entropy",
    "measured:score=loss",
    "zero-cost:labels=targets",
    "zero-cost:proxy=grasp,labels=targets",
)


def test_mean_over_targets_is_that_of_torch() -> None:
    """Ignored positions have no weight; an example without targets has none at all."""
    logits, targets = torch.randn(3, 4, 5), torch.randint(0, 5, (3, 4))
    targets[0, 2:], targets[2] = -100, -100
    batch = Batch((torch.zeros(3, 4),), targets=targets)

    classes = class_targets(batch, logits, "the test")
    found = (cross_entropy(classes, logits) * target_weights(classes)).sum(dim=1)

    expected = [float(F.cross_entropy(logits[i].double(), targets[i])) for i in (0, 1)]
    assert found.tolist() == pytest.approx([*expected, 0.0])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_class_that_the_network_has_not_is_refused(reader: str, wrong: int) -> None:
    """By every estimator that reads targets, and where accuracy is measured."""
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(8, 4)
    targets = torch.tensor([0, 1, 2, wrong, 0, 1, 2, 0])
    fine = [(x, targets.clamp(0, 2))]

    calibrated = mpq.Task(model, [(x, targets)], held_out=fine, candidates=["w4", "w8"])
    held_out = mpq.Task(model, fine, held_out=[(x, targets)], candidates=["w4", "w8"])

    with pytest.raises(DataError, match=f"target {wrong}, but the network has 3 classes, 0 to 2"):
        mpq.search(calibrated, ["weight_bytes=1x:w8"], sensitivity=reader)
    with pytest.raises(DataError, match=f"target {wrong}, but the network has 3 classes, 0 to 2"):
        mpq.search(held_out, ["weight_bytes=1x:w8"])


def test_targets_go_to_where_the_outputs_are() -> None:
    """A network over several devices takes inputs on the first and gives logits on the last."""
    batch = Batch((torch.zeros(2, 3),), targets=torch.tensor([0, 1]))
    outputs: Tensor = torch.zeros(2, 1, 3, dtype=torch.float64)

    found = class_targets(batch, outputs.to("meta"), "the test")

    assert found.device.type == "meta"
    assert cross_entropy(found, outputs.to("meta")).device.type == "meta"
