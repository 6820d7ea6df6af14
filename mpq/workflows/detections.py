"""What a detector found in images, beside what is there: mean average precision as of COCO."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final, Self, final

import numpy as np
import torch
from torch import Tensor

from mpq._support.arrays import Array
from mpq.errors import DataError, InputError, ModelError
from mpq.network.objects import Objects, objects_of

_KEYS: Final = ("boxes", "scores", "labels")
_EXPECTED: Final = (
    "the score map reads detections: a list with a dict for each image, of boxes [K, 4] (x1, y1, "
    "x2, y2), scores [K] and labels [K], or one dict of boxes [N, K, 4], scores [N, K] and labels "
    "[N, K], where a label below 0 is no detection; or either of them in `detections`"
)


@final
@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes in one image, each with a class.

    Args:
        corners: ``[K, 4]`` float64, finite: x1, y1, x2, y2, as of torchvision.
        labels: ``[K]`` integers. Boxes of a label below 0 are none.
        extras: Columns besides, ``[K]`` each: ``scores`` of detections, ``iscrowd`` and ``area`` of
            targets.

    Raises:
        InputError: If shapes or numbers are others.
    """

    corners: Array
    labels: Array
    extras: Mapping[str, Array]

    def __post_init__(self) -> None:
        count = len(self.corners)
        if self.corners.ndim != 2 or self.corners.shape[1] != 4:
            raise InputError(f"boxes are [K, 4]; got {list(self.corners.shape)}")
        for name, column in {"labels": self.labels, **self.extras}.items():
            if column.shape != (count,):
                raise InputError(f"{name} are [{count}], one for each box; got {column.shape}")
            if not np.isfinite(column).all():
                raise InputError(f"{name} have a value that is NaN or infinite")
        if (self.labels != np.round(self.labels)).any():
            raise InputError("labels are whole numbers")
        if not np.isfinite(self.corners).all():
            raise InputError("boxes have a value that is NaN or infinite")

    @classmethod
    def of(cls, found: Mapping[str, Any], names: Sequence[str]) -> Self:
        """From one image's dict.

        Args:
            found: Has ``boxes`` and ``labels``.
            names: Of further columns; those that are not there are left out.
        """
        corners = _array(found["boxes"])
        # Without boxes a list or a tensor has no second axis to be seen.
        corners = corners.reshape(-1, 4) if not corners.size else corners
        extras = {name: _array(found[name]) for name in names if name in found}
        return cls(corners, _array(found["labels"]), extras)

    @property
    def turned(self) -> Array:
        """``[M, 4]`` those of a label whose x2 is below x1, or y2 below y1."""
        is_turned = (self.corners[:, 2:] < self.corners[:, :2]).any(axis=1)
        found: Array = self.corners[is_turned & (self.labels >= 0)]
        return found

    def rows(self, image: int) -> Iterator[dict[str, Any]]:
        """As of COCO, where boxes have a width and a height."""
        for index in np.flatnonzero(self.labels >= 0).tolist():
            x1, y1, x2, y2 = self.corners[index].tolist()
            yield {
                "image_id": image,
                "category_id": int(self.labels[index]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                **{name: float(column[index]) for name, column in self.extras.items()},
            }


def detections_of(output: Any) -> list[Boxes]:
    """What a network found, image by image.

    Args:
        output: See ``_EXPECTED``.

    Raises:
        ModelError: If it is something else, or a number is not finite.
    """
    by_key = isinstance(output, Mapping)
    inner = output.get("detections") if by_key else getattr(output, "detections", None)
    told = output if inner is None else inner
    images = objects_of(told)
    # A list without images, of no image, is none.
    if images is None or any(key not in image for image in images for key in _KEYS):
        raise ModelError(f"{_EXPECTED}; got {_kind(told)}: wrap the network in a module that does")
    try:
        return [Boxes.of(image, ("scores",)) for image in images]
    except InputError as error:
        raise ModelError(f"what the network detects: {error}; {_EXPECTED}") from error


def targets_of(objects: Objects | None) -> list[Boxes]:
    """What is to be found, image by image.

    Raises:
        DataError: If there is none, or it is something else.
    """
    wanted = (
        "the score map needs what is to be found in each image: yield (images, targets), targets a "
        "list with a dict for each image, of boxes [K, 4] (x1, y1, x2, y2), labels [K] and, if "
        "there are any, iscrowd [K] and area [K]"
    )
    if objects is None:
        raise DataError(f"{wanted}; got no such targets")
    strange = next((x for x in objects if "boxes" not in x or "labels" not in x), None)
    if strange is not None:
        raise DataError(f"{wanted}; got {_kind(strange)}")
    try:
        found = [Boxes.of(image, ("iscrowd", "area")) for image in objects]
    except InputError as error:
        raise DataError(f"targets of the score map: {error}; {wanted}") from error
    ends = next((box for boxes in found for box in boxes.turned.tolist()), None)
    if ends is not None:
        raise DataError(
            f"targets of the score map: a box ends before it begins, {ends}, and could be met by "
            f"none; {wanted}"
        )
    return found


def mean_average_precision(found: Sequence[Boxes], known: Sequence[Boxes]) -> float:
    """Mean over classes and over intersections from 0.5 to 0.95, the first number of ``COCOeval``.

    Average precision is interpolated at 101 recalls, of the 100 detections of each image and class
    that have the highest scores; a class that is in no target counts nothing. By ``pycocotools``
    (Lin et al. 2014, arXiv:1405.0312).

    Args:
        found: Detections with ``scores``, of every image.
        known: Targets of the same images.

    Raises:
        DataError: If there is no target that counts, or other images than detections.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(found) != len(known):
        raise DataError(f"{len(found)} images with detections and {len(known)} with targets")
    truth, targets = COCO(), [row for i, boxes in enumerate(known) for row in boxes.rows(i)]
    if all(row.get("iscrowd") for row in targets):
        raise DataError("the score map needs targets; no image has a box that is no crowd")
    rows = [_answer(row) for i, boxes in enumerate(found) for row in boxes.rows(i)]
    if not rows:
        return 0.0
    truth.dataset = {
        "images": [{"id": index} for index in range(len(known))],
        "categories": [{"id": label} for label in sorted({x["category_id"] for x in targets})],
        # Counted from 1: in COCOeval a target of the number 0 is one that nothing was matched to.
        "annotations": [_target(row, number) for number, row in enumerate(targets, start=1)],
    }
    # It talks, which would end up in the middle of a JSON answer.
    with redirect_stdout(StringIO()):
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(rows), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return float(judged.stats[0])


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {name.removesuffix("s"): value for name, value in row.items()}


def _target(row: dict[str, Any], number: int) -> dict[str, Any]:
    area = row.get("area", row["bbox"][2] * row["bbox"][3])
    return {**row, "id": number, "area": area, "iscrowd": int(row.get("iscrowd", 0))}


def _array(value: Any) -> Array:
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.tensor(value)
    found: Array = tensor.double().numpy()
    return found


def _kind(value: Any) -> str:
    """What came, for people."""
    if isinstance(value, Mapping):
        told = ", ".join(f"{k} {_shape(x)}".strip() for k, x in list(value.items())[:8])
        return f"a {type(value).__name__} with {told or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {_kind(value[0])}" if value else "an empty list"
    return f"a {type(value).__name__} {_shape(value)}".strip()


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else ""
