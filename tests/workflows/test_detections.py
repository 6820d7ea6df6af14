"""Mean average precision of a detector: known answers, pycocotools alone, and a whole search."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import DataError, MissingDependencyError, ModelError
from mpq.workflows.detections import detections_of, mean_average_precision, targets_of
from mpq.workflows.score import Judge, Score

SIZE = 24
SCALES = torch.tensor([1.0, 0.6, 0.35])


def judged(output: Any, objects: Any) -> float:
    """Of what a network returned for all images."""
    return mean_average_precision(detections_of(output), targets_of(objects))


def image(boxes: Any, labels: Any, scores: Any = None, **columns: Any) -> dict[str, Tensor]:
    """As torchvision has them."""
    found = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "labels": torch.tensor(labels)}
    found |= {} if scores is None else {"scores": torch.tensor(scores).float()}
    return {**found, **{name: torch.tensor(x) for name, x in columns.items()}}


def test_the_answer_of_two_classes_is_known() -> None:
    """Half of the thresholds for one class; nine tenths at half of the precision for another."""
    pytest.importorskip("pycocotools")
    known = (image([[0, 0, 100, 100]], [3]), image([[50, 50, 150, 150]], [7]))
    found = [
        image([[0, 0, 100, 72]], [3], [0.9]),  # 0.72 in common: right at 0.5 to 0.7
        # 0.92 in common, behind a box that is nowhere; a class without targets counts nothing.
        image([[200, 0, 210, 10], [50, 50, 150, 142], [0, 0, 9, 9]], [7, 7, 5], [0.8, 0.6, 0.9]),
    ]

    assert judged(found, known) == pytest.approx((5 / 10 + 9 / 10 * 0.5) / 2)


def test_a_crowd_takes_what_is_found_in_it() -> None:
    """It is no miss, and no mistake."""
    pytest.importorskip("pycocotools")
    known = (image([[0, 0, 10, 10], [20, 20, 90, 90]], [1, 1], iscrowd=[0, 1], area=[100.0, 1.0]),)
    found = [image([[0, 0, 10, 10], [30, 30, 60, 60]], [1, 1], [0.5, 0.9])]
    plain = (image([[0, 0, 10, 10], [20, 20, 90, 90]], [1, 1]),)

    assert judged(found, known) == pytest.approx(1.0)
    assert judged(found, plain) < 0.6


def random_images(seed: int) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Six boxes in each of five images, found about where they are, and some others."""
    draws = torch.Generator().manual_seed(seed)
    found, known = [], []
    for _ in range(5):
        corner = torch.rand(6, 2, generator=draws) * 50
        boxes = torch.cat([corner, corner + 5 + 40 * torch.rand(6, 2, generator=draws)], dim=1)
        labels = torch.randint(0, 3, (6,), generator=draws)
        known.append({"boxes": boxes, "labels": labels, "iscrowd": (labels == 2).long()})
        known[-1]["iscrowd"][1:] = 0
        moved = boxes + 3 * torch.randn(6, 4, generator=draws)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        scores = torch.rand(6, generator=draws)
        found.append({"boxes": moved, "labels": labels.roll(1).where(scores < 0.2, labels),
                      "scores": scores})  # fmt: skip
    return found, known


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_pycocotools_says_of_its_own_files(seed: int, tmp_path: Path) -> None:
    """Written by hand as JSON of COCO, and read by it."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    found, known = random_images(seed)

    def rows(images: list[dict[str, Tensor]], *names: str) -> list[dict[str, Any]]:
        return [
            {"id": 1000 * i + j + 1, "image_id": i, "category_id": int(each["labels"][j]),
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
             **{name.removesuffix("s"): each[name][j].item() for name in names}}
            for i, each in enumerate(images)
            for j, (x1, y1, x2, y2) in enumerate(each["boxes"].tolist())
        ]  # fmt: skip

    answers = [
        {k: row[k] for k in ("image_id", "category_id", "bbox", "score")}
        for row in rows(found, "scores")
    ]
    truth = {"images": [{"id": i} for i in range(5)], "categories": [{"id": i} for i in range(3)],
             "annotations": rows(known, "iscrowd")}  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    with contextlib.redirect_stdout(io.StringIO()):
        read = coco.COCO(str(tmp_path / "truth.json"))
        alone = evaluation.COCOeval(read, read.loadRes(str(tmp_path / "answers.json")), "bbox")
        for step in (alone.evaluate, alone.accumulate, alone.summarize):
            step()

    assert judged(found, tuple(known)) == pytest.approx(alone.stats[0])
    assert 0.05 < alone.stats[0] < 0.95
    stacked = {name: torch.stack([each[name] for each in found]) for name in found[0]}
    assert judged({"detections": stacked}, tuple(known)) == judged(found, tuple(known))


def test_what_is_padding_is_not_there() -> None:
    """A label below 0, of detections and of targets."""
    pytest.importorskip("pycocotools")
    known = (image([[0, 0, 9, 9]], [0]),)
    padded = {"boxes": torch.tensor([[[0, 0, 9, 9], [0, 0, 0, 0]]]).float(),
              "labels": torch.tensor([[0, -1]])}  # fmt: skip
    batch = mpq.network.batch.Batch.of((torch.rand(1, 3, 8, 8), padded))
    output = {**padded, "scores": torch.ones(1, 2)}

    assert judged(output, known) == judged(output, batch.objects) == pytest.approx(1.0)
    assert judged([image([], [], [])], known) == 0.0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(2, 3), r"reads detections: .*; got a Tensor \[2, 3\]: wrap the network"),
        ([image([], [])], r"got a list of a dict with boxes \[0, 4\], labels \[0\]: wrap"),
        ({"logits": torch.zeros(1, 2)}, r"got a dict with logits \[1, 2\]"),
        ([image([[0, 0, 1, 1]], [1], [0.5, 0.5])], r"scores are \[1\], one for each box"),
        ([image([[0, 0, 1, float("nan")]], [1], [0.5])], "boxes have a value that is NaN"),
        ([image([[0, 0, 1, 1]], [0.5], [0.5])], "labels are whole numbers"),
    ],
)
def test_what_is_no_detection_is_refused(output: Any, message: str) -> None:
    """With what was expected, and what came."""
    with pytest.raises(ModelError, match=message):
        detections_of(output)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (None, r"yield \(images, targets\), .*; got no such targets"),
        (({"boxes": torch.zeros(1, 4), "class_labels": torch.zeros(1)},), "class_labels"),
        ((image([[0, 0, 1, 1]], [1, 2]),), r"targets of the score map: labels are \[1\]"),
        ([{"boxes": [[3, 3, 1, 5]], "labels": [1]}], "a box ends before it begins"),
    ],
)
def test_targets_that_say_nothing_are_refused(objects: Any, message: str) -> None:
    """Those of another convention, too."""
    with pytest.raises(DataError, match=message):
        targets_of(objects)


def test_crowds_alone_are_no_targets() -> None:
    """Nothing could be found."""
    known = (image([[0, 0, 1, 1]], [1], iscrowd=[1]),)
    pytest.importorskip("pycocotools")
    with pytest.raises(DataError, match="no image has a box that is no crowd"):
        judged([image([], [], [])], known)


def test_without_pycocotools_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mpq\[scores\]'"):
        Score.built_in("map")


class Detector(nn.Module):
    """Finds the brightest square of a channel; beside it, the maps that it was chosen of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.smooth = nn.Conv2d(3, 3, 5, padding=2, bias=False)
        self.corners = nn.Linear(3, 4, bias=False)
        with torch.no_grad():
            self.smooth.weight.mul_(0.01)
            for channel in range(3):
                self.smooth.weight[channel, channel] += 1 / 25
            # Small numbers beside large ones, which few bits round away.
            self.corners.weight.copy_(torch.outer(torch.tensor([-2.0, -2, 3, 3]), SCALES))

    def forward(self, images: list[Tensor]) -> dict[str, Any]:
        """Maps ``[N, 3, H, W]``, and of every image as many boxes as are bright."""
        maps = self.smooth(torch.stack(images))
        return {"logits": maps, "detections": [self._found(each) for each in maps]}

    def _found(self, maps: Tensor) -> dict[str, Tensor]:
        score, place = maps.flatten(1).max(dim=1)
        bright = score > 0.35
        y, x = place // SIZE, place % SIZE
        boxes = torch.stack([x, y, x, y], dim=1) + self.corners(torch.diag(1 / SCALES))
        labels = torch.arange(3)
        return {"boxes": boxes[bright], "scores": score[bright], "labels": labels[bright]}


def make_detector() -> nn.Module:
    """See ``Detector``."""
    return Detector().eval()


def squares(seed: int = 0) -> list[Any]:
    """Images of noise, each with a square in one channel."""
    draws, batches = torch.Generator().manual_seed(seed), []
    for _ in range(4):
        images = list(0.2 * torch.rand(4, 3, SIZE, SIZE, generator=draws))
        targets = []
        for each in images:
            x, y = torch.randint(2, SIZE - 8, (2,), generator=draws).tolist()
            label = int(torch.randint(0, 3, (1,), generator=draws))
            each[label, y : y + 5, x : x + 5] += 0.5
            targets.append(image([[x, y, x + 5, y + 5]], [label]))
        batches.append((images, targets))
    return batches


def unseen() -> list[Any]:
    """Others, as ``zip`` makes them of pairs."""
    return [(tuple(images), tuple(targets)) for images, targets in squares(1)]


def test_a_detector_is_searched_by_what_it_finds(tmp_path: Path) -> None:
    """From the command line, on held-out images; evaluated, it says the same."""
    pytest.importorskip("pycocotools")
    asked = ["--model", f"{__file__}:make_detector", "--data", f"{__file__}:squares", "--score",
             "map"]  # fmt: skip
    options = ["--eval-data", f"{__file__}:unseen", "--precisions", "w2,w3,w8", "--rounding",
               "nearest", "--limit", "weight_bytes=0.8x:w8", "--output", str(tmp_path), "--cache",
               str(tmp_path / "kept"), "--sensitivity", "measured:score=own"]  # fmt: skip

    found = CliRunner().invoke(app, ["search", *asked, *options, "--json"])

    assert found.exit_code == 0, found.output
    json.loads(found.stdout)  # pycocotools talks
    rows = {row.label: row.measured.score for row in mpq.load(tmp_path).comparisons}
    own = Judge(Score.built_in("map"), mpq.Calibration(unseen()), make_detector()).original
    assert rows["original"] == pytest.approx(own)
    assert own > 0.5
    assert rows["w8a32"] > rows["w2a32"]  # type: ignore[operator]
    asked[3] = f"{__file__}:unseen"
    printed = CliRunner().invoke(app, ["evaluate", str(tmp_path), *asked])
    scores = {name: row["score"] for name, row in json.loads(printed.stdout).items()}
    assert scores["quantized"] == pytest.approx(rows["result"])


def test_a_cache_knows_other_targets(tmp_path: Path) -> None:
    """The same images with other boxes are other data."""
    pytest.importorskip("pycocotools")
    moved = [(images, [image((t["boxes"] + 1).tolist(), t["labels"].tolist()) for t in targets])
             for images, targets in unseen()]  # fmt: skip
    scores = []
    for held_out in (unseen(), moved):
        task = mpq.Task(make_detector(), squares(), held_out, candidates=["w3", "w8"],
                        rounding="nearest", score="map", cache=tmp_path)  # fmt: skip
        result = mpq.search(task, ["weight_bytes=0.8x:w8"], sensitivity="weight-error")
        scores.append(result.comparison("w8a32").measured.score)
    assert scores[0] != scores[1]
