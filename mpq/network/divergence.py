"""The loss that everything is measured in: KL divergence from the original network's output."""

import torch
from torch import Tensor


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    r"""KL divergence in nats at every position.

    .. math:: KL(p \| q) = \sum_c p_c (\log p_c - \log q_c)

    Args:
        reference: Logits of the original network, ``[N, P, C]``.
        logits: Logits of the quantized one, ``[N, P, C]``.

    Returns:
        ``[N, P]``, float64, because differences between close networks drown in float32.
    """
    log_p = reference.double().log_softmax(dim=-1)
    log_q = logits.double().log_softmax(dim=-1)
    # From logarithms: p / q would be 0 / 0 where both underflow. Rounding may leave
    # a sum of -4e-16, and no divergence is negative.
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp_min(0.0)


def fisher_probe(logits: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    r"""Random direction ``u`` whose outer product is the curvature of the KL divergence.

    .. math:: u = A \varepsilon, \quad A = \mathrm{diag}(\sqrt p) - p \sqrt{p}^T,
        \quad E[u u^T] = A A^T = \mathrm{diag}(p) - p p^T

    with random signs :math:`\varepsilon`, one draw per position.

    Args:
        logits: Those of the original network, ``[N, P, C]``.
        weights: ``[N, P]`` share of every position in its example's mean.
        generator: On the CPU; a device's own would draw other signs.

    Returns:
        ``[N, P, C]``, detached, times the square root of the position's weight.
    """
    p = logits.detach().double().softmax(dim=-1)
    signs = random_signs(p, generator)
    root = p.sqrt()
    # A is never built: over a vocabulary, [C, C] per position fits into no memory.
    u = root * signs - p * (root * signs).sum(dim=-1, keepdim=True)
    return (u * weights.sqrt().unsqueeze(-1)).to(logits.dtype)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Plus and minus one, float64, of a tensor's shape and on its device."""
    # On the CPU first, so that one seed gives one answer on all devices.
    signs = torch.randint(0, 2, like.shape, generator=generator)
    return signs.to(like.device, torch.float64) * 2 - 1


def label_probe(
    logits: Tensor, weights: Tensor, targets: Tensor | None, generator: torch.Generator
) -> Tensor:
    r"""Gradient of the cross-entropy with respect to the logits, :math:`p - e_y`.

    Args:
        logits: Those of the original network, ``[N, P, C]``.
        weights: ``[N, P]`` share of every position in its example's mean.
        targets: Class indices ``[N, P]``, below 0 where the weight is 0; ``None``: drawn from the
            network's own distribution, independently at every position.
        generator: On the CPU, for drawn labels.

    Returns:
        ``[N, P, C]``, detached. Given targets: times the weights, so that a backward pass gives the
        gradient of each example's mean. Drawn ones: times their square root, so that the mean of
        the gradient's outer product is the Fisher information (positions are independent).
    """
    p = logits.detach().double().softmax(dim=-1)
    if targets is None:
        # `multinomial` takes at most two axes, and a generator of its tensor's own device.
        rows = p.flatten(0, 1).cpu()
        drawn = torch.multinomial(rows, 1, generator=generator).to(p.device)
        classes, scale = drawn.reshape(p.shape[:2]), weights.sqrt()
    else:
        # Without a target the class is below 0, which `one_hot` refuses; its weight is 0.
        classes, scale = targets.clamp_min(0), weights
    u = p - torch.nn.functional.one_hot(classes, p.shape[-1])
    return (u * scale.unsqueeze(-1)).to(logits.dtype)
