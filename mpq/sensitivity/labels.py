"""Whose labels a gradient of the cross-entropy is taken for: drawn ones, or the data's."""

import torch
from torch import Tensor

from mpq.calibration import Batch
from mpq.divergence import label_probe
from mpq.errors import DataError, InputError, UnknownNameError
from mpq.metric import KLDivergence
from mpq.model import Network
from mpq.outputs import position_weights
from mpq.sensitivity.gradients import ProbeOf

LABELS = ("sampled", "targets")
"""``sampled``: drawn from the network's own distribution; ``targets``: those of the data."""


def check_labels(labels: str) -> None:
    """Refuses what is not in ``LABELS``.

    Raises:
        UnknownNameError: If it is not.
    """
    if labels not in LABELS:
        raise UnknownNameError("choice of labels", labels, LABELS)


def fisher_gradient(
    network: Network, batch: Batch, labels: str, generator: torch.Generator
) -> ProbeOf:
    """Gradient of the outputs whose mean outer product is the Fisher information.

    ``sampled`` gives the true one; for a network without probabilities it is the random direction
    of its metric, whose mean outer product is the metric's curvature. ``targets`` gives the
    empirical one, from the gradient of each example's mean cross-entropy.
    """

    def probe(outputs: Tensor) -> Tensor:
        weights, metric = position_weights(batch, outputs), network.metric
        if labels == "targets":
            classes = class_labels(network, batch, outputs, labels, generator)
            return label_probe(outputs, weights, classes, generator)
        if isinstance(metric, KLDivergence):
            return label_probe(outputs / metric.temperature, weights, None, generator)
        return metric.probe(outputs, weights, generator)

    return probe


def loss_gradient(
    network: Network, batch: Batch, labels: str, generator: torch.Generator
) -> ProbeOf:
    """Gradient of each example's mean cross-entropy with respect to the outputs.

    For a network without probabilities and ``sampled``: the metric's random direction, averaged
    over positions likewise.
    """

    def probe(outputs: Tensor) -> Tensor:
        weights = position_weights(batch, outputs)
        if labels == "sampled" and not isinstance(network.metric, KLDivergence):
            u = network.metric.probe(outputs, weights, generator)
            return u * weights.sqrt().unsqueeze(-1).to(u.dtype)
        classes = class_labels(network, batch, outputs, labels, generator)
        return label_probe(outputs, weights, classes, generator)

    return probe


def class_labels(
    network: Network, batch: Batch, outputs: Tensor, labels: str, generator: torch.Generator
) -> Tensor:
    """Class of every position, ``[N, P]``, below 0 where not counted, from outputs ``[N, P, C]``.

    Raises:
        InputError: If the network's outputs are no classes.
        DataError: If targets are wanted and there are none, or none that fit.
    """
    if not isinstance(network.metric, KLDivergence):
        raise InputError(f"labels are classes; the metric {network.metric.name!r} has none")
    if labels == "targets":
        return _targets(batch, outputs)
    p = (outputs.detach().double() / network.metric.temperature).softmax(dim=-1)
    # On the CPU: a device's own generator would draw other labels.
    drawn = torch.multinomial(p.flatten(0, 1).cpu(), 1, generator=generator)
    return drawn.reshape(p.shape[:2]).to(p.device)


def _targets(batch: Batch, outputs: Tensor) -> Tensor:
    if batch.targets is None:
        raise DataError(
            "labels=targets needs targets in the calibration data: yield (inputs, targets), "
            "or take labels=sampled"
        )
    expected, num_classes = tuple(outputs.shape[:2]), outputs.shape[2]
    targets = batch.targets.reshape(batch.size, -1).to(outputs.device)
    if targets.is_floating_point() or tuple(targets.shape) != expected:
        raise DataError(
            f"targets must be class indices {expected}, one per position; got "
            f"{tuple(batch.targets.shape)} {batch.targets.dtype}"
        )
    if int(targets.max()) >= num_classes:
        raise DataError(f"target {int(targets.max())}, but the network has {num_classes} classes")
    return targets.long()
