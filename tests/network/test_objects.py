"""What is to be found in images goes with them, however examples are cut."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mpq.errors import DataError
from mpq.network.examples import Batch, Calibration


def targets(count: int = 3) -> list[dict[str, Tensor]]:
    """Of each image a number of boxes of its own."""
    return [
        {"boxes": torch.full((i, 4), float(i)), "labels": torch.arange(i)} for i in range(count)
    ]


def pairs(kind: str) -> Any:
    """Three images with targets, in the ways that data functions yield them."""
    images = [torch.rand(3, 4 + i, 5) for i in range(3)]
    stacked, objects = torch.rand(3, 3, 8, 8), targets()
    made: dict[str, Any] = {
        "lists": (images, objects),
        "zipped": (tuple(images), tuple(objects)),
        "tensor": (stacked, objects),
        "named": ({"pixel_values": stacked}, objects),
        "labels": {"pixel_values": stacked, "labels": objects},
    }
    return made[kind]


@pytest.mark.parametrize("kind", ["lists", "zipped", "tensor", "named", "labels"])
def test_objects_go_with_their_images(kind: str) -> None:
    """No target of a class; cut, picked and repeated as images are."""
    batch = Batch.of(pairs(kind))

    assert batch.size == 3
    assert batch.targets is None
    assert counts(batch) == [0, 1, 2]
    assert counts(batch.slice(1, 3)) == [1, 2]
    assert counts(batch.take([0, 2])) == [0, 2]
    assert counts(batch.repeated(2)) == [0, 1, 2, 0, 1, 2]
    assert counts(batch.whole()) == [0, 1, 2]
    assert [counts(each) for each in Calibration([pairs(kind)] * 2, 1, 4)] == [[1, 2], [0]]


def counts(batch: Batch) -> list[int]:
    """Of boxes in each image."""
    assert batch.objects is not None
    return [len(each["boxes"]) for each in batch.objects]


def test_a_dict_of_tensors_has_an_entry_for_each_image() -> None:
    """As collated with padding."""
    boxes = torch.rand(2, 5, 4)
    batch = Batch.of((torch.rand(2, 3, 8, 8), {"boxes": boxes, "labels": torch.ones(2, 5)}))
    assert batch.objects is not None
    assert torch.equal(batch.objects[1]["boxes"], boxes[1])


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (targets(2), "a dict for each image; got 2 for 3 examples"),
        ({"depth": torch.rand(3)}, "targets are a tensor; got dict"),
        ({"boxes": torch.rand(3, 1, 4), "labels": torch.rand(2, 1)}, "are a tensor; got dict"),
    ],
)
def test_other_targets_are_refused(objects: Any, message: str) -> None:
    """Of another number of images, or of none."""
    with pytest.raises(DataError, match=message):
        Batch.of((torch.rand(3, 3, 8, 8), objects))
