"""Scores that need no function of the user's: of targets, or of the original's outputs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import exp, inf, log10
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from mpq.errors import DataError, InputError
from mpq.network.examples import IGNORED_TARGET, Calibration
from mpq.network.metric import KL
from mpq.network.modules import device_of
from mpq.network.outputs import scored_tensor
from mpq.network.targets import class_targets, cross_entropy
from mpq.workflows.detections import Boxes, detections_of, mean_average_precision, targets_of

Scoring = Callable[[nn.Module, Calibration, nn.Module], Any]
"""From a network, examples and the original to a number."""


@final
@dataclass(frozen=True)
class BuiltIn:
    """A score by name.

    Args:
        function: Makes a number of a network.
        higher_is_better: Of two numbers.
        summary: For people.
        needs: A package of the extra ``scores``; empty: none.
    """

    function: Scoring
    higher_is_better: bool
    summary: str
    needs: str = ""


def _top(count: int) -> Scoring:
    def score(module: nn.Module, data: Calibration, _: nn.Module) -> float:
        hits = total = 0
        for logits, targets in _on_targets(module, data):
            best = logits.topk(min(count, logits.shape[-1]), dim=-1).indices
            hits += int((best == targets[:, None]).any(dim=-1).sum())
            total += len(targets)
        return hits / total

    return score


def _perplexity(module: nn.Module, data: Calibration, _: nn.Module) -> float:
    lost, total = 0.0, 0
    for logits, targets in _on_targets(module, data):
        lost += float(cross_entropy(targets[:, None], logits[:, None]).sum())
        total += len(targets)
    return exp(lost / total)


def _mean_iou(module: nn.Module, data: Calibration, _: nn.Module) -> float:
    """Mean over the classes that are there, in targets or in answers."""
    both = either = torch.zeros(())
    for logits, targets in _on_targets(module, data):
        count = logits.shape[-1]
        found = logits.argmax(dim=-1)
        shared = torch.bincount(found[found == targets], minlength=count).double().cpu()
        ours, theirs = (torch.bincount(x, minlength=count).double().cpu() for x in (found, targets))
        both, either = both + shared, either + ours + theirs - shared
    return float((both / either)[either > 0].mean())


def _on_targets(module: nn.Module, data: Calibration) -> Iterator[tuple[Tensor, Tensor]]:
    """``[M, C]`` logits and ``[M]`` classes, of what counts in each batch.

    Raises:
        DataError: If no example has a target.
    """
    device, is_empty = device_of(module), True
    for batch in data:
        on = batch.to(device)
        logits = on.as_examples(KL.positions(module(*on.args, **on.kwargs)))
        targets = class_targets(on, logits, "this score")
        counted = targets != IGNORED_TARGET
        if counted.any():
            is_empty = False
            yield logits[counted], targets[counted]
    if is_empty:
        raise DataError("this score needs examples with targets; got none")


def _sqnr_db(module: nn.Module, data: Calibration, original: nn.Module) -> float:
    noise = power = 0.0
    for found, known in _beside(module, data, original):
        noise += float((found - known).square().sum())
        power += float(known.square().sum())
    return _decibels(power, noise)


def _psnr_db(module: nn.Module, data: Calibration, original: nn.Module) -> float:
    """The peak is the range of the original's outputs."""
    noise, count, low, high = 0.0, 0, inf, -inf
    for found, known in _beside(module, data, original):
        noise += float((found - known).square().sum())
        count += known.numel()
        low, high = min(low, float(known.min())), max(high, float(known.max()))
    return _decibels((high - low) ** 2, noise / count)


def _decibels(signal: float, noise: float) -> float:
    """At most 200, as of networks that answer alike: a score is finite."""
    return 200.0 if noise <= signal * 1e-20 else 10 * log10(signal / noise)


def _ssim(module: nn.Module, data: Calibration, original: nn.Module) -> float:
    """Of images ``[N, C, H, W]``, in the range of the original's; mean over images."""
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity
    pairs = [(a.numpy(), b.numpy()) for a, b in _beside(module, data, original)]
    if any(known.ndim != 4 for _, known in pairs):
        raise InputError("ssim compares images: the output is a tensor [N, C, H, W]")
    span = max(float(known.max()) for _, known in pairs)
    span -= min(float(known.min()) for _, known in pairs)
    found = [
        similarity(one, other, channel_axis=0, data_range=span)
        for batch in pairs
        for one, other in zip(*batch, strict=True)
    ]
    return float(sum(found) / len(found))


def _mean_average_precision(module: nn.Module, data: Calibration, _: nn.Module) -> float:
    """Of all images together, as an average precision is none of batches."""
    found, known = list[Boxes](), list[Boxes]()
    for batch in data:
        known += targets_of(batch.objects)
        on = batch.to(device_of(module))
        found += detections_of(module(*on.args, **on.kwargs))
    return mean_average_precision(found, known)


def _beside(
    module: nn.Module, data: Calibration, original: nn.Module
) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs of both, in double precision."""
    for batch in data:
        yield tuple(  # type: ignore[misc]
            scored_tensor(each(*on.args, **on.kwargs)).double().cpu()
            for each in (module, original)
            for on in (batch.to(device_of(each)),)
        )


BUILT_IN: Final[Mapping[str, BuiltIn]] = {
    "accuracy": BuiltIn(_top(1), True, "share of targets that are the most likely class"),
    "top-5": BuiltIn(_top(5), True, "share of targets among the five most likely classes"),
    "perplexity": BuiltIn(_perplexity, False, "exp of the mean cross entropy on targets"),
    "miou": BuiltIn(_mean_iou, True, "intersection over union, a mean over classes"),
    "sqnr": BuiltIn(_sqnr_db, True, "signal to noise of the original's outputs, decibels"),
    "psnr": BuiltIn(_psnr_db, True, "peak signal to noise beside the original's outputs, decibels"),
    "ssim": BuiltIn(
        _ssim, True, "structural similarity of images to the original's (mpq[scores])", "skimage"
    ),
    "map": BuiltIn(
        _mean_average_precision, True,
        "mean average precision of a detector, as of COCO (mpq[scores])", "pycocotools",
    ),
}  # fmt: skip
"""Scores by the names that ``--score`` takes."""
