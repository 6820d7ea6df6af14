"""Gradients of the cross-entropy, against autograd and their moments."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import InputError
from mpq.network import divergence
from mpq.network.divergence import drawn_classes, label_probe
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import KL, KLDivergence, OutputMetric, SquaredError
from mpq.network.network import Network
from mpq.sensitivity.passes.labels import class_labels, fisher_gradient, loss_gradient


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def network(metric: OutputMetric = KL) -> Network:
    """Any; only its metric is read."""
    return Network.of(nn.Linear(4, 3).eval(), Calibration([torch.randn(2, 4)]), metric=metric)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def masked_batch(targets: Tensor | None = None) -> Batch:
    """Two examples of three positions, the last one of the second hidden."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    return Batch((), {"input_ids": torch.zeros(2, 3), "attention_mask": mask}, targets)


def test_loss_gradient_is_that_of_the_mean_over_positions() -> None:
    """Of each example alone; hidden positions have none."""
    targets, outputs = torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.randn(2, 3, 3)

    found = loss_gradient(network(), masked_batch(targets), "targets", generator())(outputs)

    v = outputs.clone().requires_grad_()
    loss = F.cross_entropy(v[0], targets[0]) + F.cross_entropy(v[1, :2], targets[1, :2])
    (expected,) = torch.autograd.grad(loss, v)
    torch.testing.assert_close(found, expected)


def test_sampled_labels_come_with_the_networks_probabilities() -> None:
    """Independently at every position."""
    outputs = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0]]).repeat(2000, 1, 1)
    batch = Batch((torch.zeros(2000, 2),))

    found, _ = class_labels(network(), batch, outputs, "sampled", generator())

    shares = F.one_hot(found, 3).double().mean(dim=0)
    torch.testing.assert_close(shares, outputs[0].double().softmax(dim=-1), rtol=0, atol=0.03)


def test_some_positions_at_a_time_draw_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """And give the same gradient, so that the size of a batch's pieces does not matter."""
    outputs, weights = torch.randn(3, 4, 50), torch.rand(3, 4).double()
    labels, whole = (
        drawn_classes(outputs, generator()), label_probe(outputs, weights, None, generator())
    )  # fmt: skip

    monkeypatch.setattr(divergence, "LOGITS_AT_ONCE", 101)

    assert torch.equal(drawn_classes(outputs, generator()), labels)
    assert torch.equal(label_probe(outputs, weights, None, generator()), whole)
    shares = outputs.double().softmax(dim=-1) - F.one_hot(labels, 50)
    torch.testing.assert_close(whole, (shares * weights.sqrt()[..., None]).float())


def test_classes_without_probability_are_never_drawn() -> None:
    """Also where the first or the last ones have none."""
    outputs = torch.tensor([-2000.0, 0.0, -2000.0, 0.0, -2000.0]).repeat(1, 500, 1)

    found = drawn_classes(outputs, generator())

    assert sorted(set(found.flatten().tolist())) == [1, 3]


@pytest.mark.parametrize("metric", [KL, KLDivergence(2.0)])
def test_fisher_gradient_has_the_curvature_as_second_moment(metric: KLDivergence) -> None:
    """``diag(p) - p p^T`` at every position, times its weight, also with a temperature."""
    outputs = torch.randn(1, 2, 3).repeat(20000, 1, 1)
    batch = Batch((torch.zeros(20000, 2),))

    u = fisher_gradient(network(metric), batch, "sampled", generator())(outputs).double()

    p = (outputs[0].double() / metric.temperature).softmax(dim=-1)
    expected = 0.5 * (p.diag_embed() - p[:, :, None] * p[:, None, :])
    found = torch.einsum("npc,npd->pcd", u, u) / len(u)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


def test_sampled_loss_gradient_is_the_fisher_gradient_less_the_root() -> None:
    """One is weighted by a position's share, the other by the root of it."""
    outputs, batch = torch.randn(2, 3, 3), masked_batch()

    loss = loss_gradient(network(), batch, "sampled", generator())(outputs)
    fisher = fisher_gradient(network(), batch, "sampled", generator())(outputs)

    root = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]]).sqrt()[..., None]
    torch.testing.assert_close(loss, fisher * root)


def test_networks_without_classes_take_their_metrics_direction() -> None:
    """Random signs for the squared error, averaged over positions where it is a mean."""
    outputs, batch = torch.randn(5, 4, 2), Batch((torch.zeros(5, 4),))

    fisher = fisher_gradient(network(SquaredError()), batch, "sampled", generator())(outputs)
    loss = loss_gradient(network(SquaredError()), batch, "sampled", generator())(outputs)

    torch.testing.assert_close(fisher.abs(), torch.full_like(outputs, 0.5))
    torch.testing.assert_close(loss.abs(), torch.full_like(outputs, 0.25))


@pytest.mark.parametrize("gradient", [fisher_gradient, loss_gradient])
def test_targets_need_classes(gradient: object) -> None:
    """A regression has no cross-entropy."""
    assert callable(gradient)
    batch = Batch((torch.zeros(2, 1),), targets=torch.tensor([0, 1]))
    probe = gradient(network(SquaredError()), batch, "targets", generator())

    with pytest.raises(InputError, match="the metric 'squared-error' has none"):
        probe(torch.randn(2, 1, 3))
