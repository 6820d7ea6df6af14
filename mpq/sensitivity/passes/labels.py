"""Whose labels a gradient of the cross-entropy is taken for: drawn ones, or the data's."""

import torch
from torch import Tensor

from mpq.errors import InputError, UnknownNameError
from mpq.network.divergence import label_probe
from mpq.network.examples import Batch
from mpq.network.metric import KLDivergence
from mpq.network.network import Network
from mpq.network.outputs import position_weights
from mpq.network.targets import class_targets, target_weights
from mpq.sensitivity.passes.backward_pass import ProbeOf

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
        if labels == "sampled":
            return _sampled(network, batch, outputs, generator)
        return _of_mean_loss(network, batch, outputs, labels, generator)

    return probe


def loss_gradient(
    network: Network, batch: Batch, labels: str, generator: torch.Generator
) -> ProbeOf:
    """Gradient of each example's mean cross-entropy with respect to the outputs.

    For a network without probabilities and ``sampled``: the metric's random direction, averaged
    over positions likewise.
    """

    def probe(outputs: Tensor) -> Tensor:
        if labels == "sampled" and not isinstance(network.metric, KLDivergence):
            u = network.metric.probe(outputs, position_weights(batch, outputs), generator)
            return u * position_weights(batch, outputs).sqrt().unsqueeze(-1).to(u.dtype)
        return _of_mean_loss(network, batch, outputs, labels, generator)

    return probe


def _sampled(network: Network, batch: Batch, outputs: Tensor, generator: torch.Generator) -> Tensor:
    weights, metric = position_weights(batch, outputs), network.metric
    if isinstance(metric, KLDivergence):
        return label_probe(outputs / metric.temperature, weights, None, generator)
    return metric.probe(outputs, weights, generator)


def _of_mean_loss(
    network: Network, batch: Batch, outputs: Tensor, labels: str, generator: torch.Generator
) -> Tensor:
    classes, weights = class_labels(network, batch, outputs, labels, generator)
    return label_probe(softened(network, outputs), weights, classes, generator)


def class_labels(
    network: Network, batch: Batch, outputs: Tensor, labels: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Class of every position, and its share in its example's mean, both ``[N, P]``.

    Raises:
        InputError: If the network's outputs are no classes.
        DataError: If targets are wanted and there are none, or none that fit.
    """
    logits = softened(network, outputs)
    if labels == "targets":
        targets = class_targets(batch, logits, "labels=targets, unlike labels=sampled,")
        return targets, target_weights(targets)
    p = logits.detach().double().softmax(dim=-1)
    # On the CPU: a device's own generator would draw other labels.
    drawn = torch.multinomial(p.flatten(0, 1).cpu(), 1, generator=generator)
    return drawn.reshape(p.shape[:2]).to(p.device), position_weights(batch, outputs)


def softened(network: Network, outputs: Tensor) -> Tensor:
    """Logits over the temperature of the network's metric.

    Raises:
        InputError: If the network's outputs are no classes.
    """
    if not isinstance(network.metric, KLDivergence):
        raise InputError(f"labels are classes; the metric {network.metric.name!r} has none")
    return outputs / network.metric.temperature
