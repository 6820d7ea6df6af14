"""Whose labels a gradient of the cross-entropy is taken for: drawn ones, or the data's."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mpq.errors import UnknownNameError
from mpq.network.divergence import drawn_classes, label_probe
from mpq.network.examples import Batch
from mpq.network.network import Network
from mpq.network.outputs import position_weights
from mpq.network.targets import class_targets, target_weights
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import GradientReader, ProbeOf, read_gradients

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
            weights = position_weights(batch, outputs)
            return network.metric.label_gradient(outputs, weights, generator)
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
        if labels == "sampled" and not network.metric.is_classification:
            u = network.metric.probe(outputs, position_weights(batch, outputs), generator)
            # A probe has the root of the weights, for its square; a mean over positions takes them
            # whole.
            return u * position_weights(batch, outputs).sqrt().unsqueeze(-1).to(u.dtype)
        return _of_mean_loss(network, batch, outputs, labels, generator)

    return probe


Gradient = Callable[[Network, Batch, str, torch.Generator], ProbeOf]
"""``fisher_gradient`` or ``loss_gradient``."""


def labelled_passes(
    on: Estimation, reader: GradientReader, gradient: Gradient, labels: str, seed: int
) -> Iterator[Batch]:
    """Reads one backward pass over every batch.

    Args:
        on: The network and the examples.
        reader: Is called at every layer.
        gradient: What the backward pass starts with.
        labels: Whose labels the gradient is taken for; one of ``LABELS``.
        seed: Seed of drawn labels.

    Yields:
        Every batch, when its pass is over.

    Raises:
        InputError: If targets are wanted and the network's outputs are no classes.
        DataError: If targets are wanted and there are none, or none that fit.
    """
    generator = torch.Generator().manual_seed(seed)
    for batch in on.batches("gradients"):
        probe = gradient(on.network, batch, labels, generator)
        read_gradients(on.network, batch, reader, probe)
        yield batch


def _of_mean_loss(
    network: Network, batch: Batch, outputs: Tensor, labels: str, generator: torch.Generator
) -> Tensor:
    classes, weights = class_labels(network, batch, outputs, labels, generator)
    return label_probe(network.metric.logits(outputs), weights, classes, generator)


def class_labels(
    network: Network, batch: Batch, outputs: Tensor, labels: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Class of every position, and its share in its example's mean, both ``[N, P]``.

    Raises:
        InputError: If the network's outputs are no classes.
        DataError: If targets are wanted and there are none, or none that fit.
    """
    logits = network.metric.logits(outputs)
    if labels == "targets":
        targets = class_targets(batch, logits, "labels=targets, unlike labels=sampled,")
        return targets, target_weights(targets)
    return drawn_classes(logits, generator), position_weights(batch, outputs)
