"""The loss that everything is measured in: KL divergence from the original network's output."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from mpq.network.signs import Draws, ExampleSigns, signs_of

LOGITS_AT_ONCE: Final = 1 << 18
"""That are looked at at once (1 MiB in float32), which stays in a processor's cache."""
_FAR: Final = 60.0
"""Nats that a logit may gain on the others before its exponential leaves float32."""


def kl_divergence(reference: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""KL divergence in nats at every position.

    .. math:: KL(p \| q) = \sum_c p_c (\log p_c - \log q_c)
        = \log \Bigl(1 + \sum_c p_c (e^{\delta_c} - 1)\Bigr) - \sum_c p_c \delta_c, \quad
        \delta = f' - f - \sum_c p_c (f'_c - f_c)

    The second form takes one softmax, in float32 or wider, of the original alone, as differences
    between close networks are those of their logits, exactly; what follows is in float64. Some
    positions at a time. The first form, in float64, where a logit moves by more than ``_FAR``, and
    where gradients are asked for, which are differences of close probabilities.

    Args:
        reference: Logits ``f`` of the original network, ``[N, P, C]``.
        logits: Logits ``f'`` of the quantized one, ``[N, P, C]``.
        temperature: Divides both.

    Returns:
        ``[N, P]``, float64.
    """
    if torch.is_grad_enabled() and (logits.requires_grad or reference.requires_grad):
        return _by_logarithms(reference / temperature, logits / temperature)
    step = _positions_at_once(logits)
    pieces = (each.flatten(0, 1).split(step) for each in (reference, logits))
    parts = [_by_differences(f, g, temperature) for f, g in zip(*pieces, strict=True)]
    return torch.cat(parts).reshape(logits.shape[:-1])


def _by_logarithms(reference: Tensor, logits: Tensor) -> Tensor:
    log_p = reference.double().log_softmax(dim=-1)
    log_q = logits.double().log_softmax(dim=-1)
    # From logarithms: p / q would be 0 / 0 where both underflow. Rounding may leave
    # a sum of -4e-16, and no divergence is negative.
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp_min(0.0)


def _by_differences(reference: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """``[r]`` from logits ``[r, C]``."""
    wide = torch.promote_types(reference.dtype, torch.float32)
    p = (reference.to(wide) / temperature).softmax(dim=-1).double()
    change = (logits.to(wide) - reference.to(wide)).double().div_(temperature)
    # Around its mean no exponential is far from 1 on the whole, so that nothing cancels.
    change -= torch.linalg.vecdot(p, change).unsqueeze(-1)
    if not bool(change.max() <= _FAR):  # also where it is no number
        return _by_logarithms(reference / temperature, logits / temperature)
    rest: Tensor = torch.linalg.vecdot(p, change)
    grown: Tensor = torch.linalg.vecdot(p, change.expm1_())
    return grown.log1p_().sub_(rest).clamp_min_(0.0)


def fisher_probe(
    logits: Tensor, weights: Tensor, generator: Draws, temperature: float = 1.0
) -> Tensor:
    r"""Random direction ``u`` whose outer product is the curvature of the KL divergence.

    .. math:: u = A \varepsilon, \quad A = \mathrm{diag}(\sqrt p) - p \sqrt{p}^T,
        \quad E[u u^T] = A A^T = \mathrm{diag}(p) - p p^T

    with random signs :math:`\varepsilon`, one draw per position. Some positions at a time, in
    float32 or wider, so that a large vocabulary takes no more memory than its logits.

    Args:
        logits: Those of the original network, ``[N, P, C]``.
        weights: ``[N, P]`` share of every position in its example's mean.
        generator: See ``random_signs``.
        temperature: Divides the logits that the probabilities are of.

    Returns:
        ``[N, P, C]``, detached, times the square root of the position's weight.
    """
    logits, roots = logits.detach(), weights.sqrt().unsqueeze(-1)
    step = _positions_at_once(logits)
    if logits[..., 0].numel() <= step:
        signs = random_signs(logits, generator)
        return _fisher_probe(logits, roots, signs, temperature)
    found = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    pieces = (part.flatten(0, 1).split(step) for part in (logits, roots, found))
    for some, root, into, signs in zip(*pieces, _pieces(logits, generator, step), strict=True):
        into.copy_(_fisher_probe(some, root, signs, temperature))
    return found


def _pieces(logits: Tensor, generator: Draws, step: int) -> Iterator[Tensor]:
    """Signs ``[step, C]`` position by position, so that pieces of any size are the same signs."""
    if isinstance(generator, ExampleSigns):
        num_examples, positions, channels = logits.shape
        packed = generator.bits((num_examples, positions, channels), logits.device)
        for part in packed.flatten(0, 1).split(step):
            yield signs_of(part, channels, torch.float32)
    else:
        for part in logits.flatten(0, 1).split(step):
            yield random_signs(part, generator)


def _fisher_probe(logits: Tensor, roots: Tensor, signs: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    p = (logits / temperature).to(wide).softmax(dim=-1)
    signed = p.sqrt().mul_(signs.to(p.dtype))
    # A is never built: over a vocabulary, [C, C] per position fits into no memory.
    u = signed.addcmul(p, signed.sum(dim=-1, keepdim=True), value=-1)
    return u.mul_(roots.to(u.dtype)).to(logits.dtype)


def random_signs(like: Tensor, generator: Draws) -> Tensor:
    """Plus and minus one, float64, of a tensor's shape and on its device.

    Args:
        like: Any tensor; ``[N, ..., C]`` of examples where signs are by example.
        generator: Signs by example, which all devices draw alike; or a generator on the CPU. Where
            the tensor is on an accelerator that one seeds another there: other signs than those of
            the CPU, and no transfer of as many numbers.
    """
    if isinstance(generator, ExampleSigns):
        return generator.signs(like)
    if like.device.type in ("cuda", "xpu", "mps"):
        seed = int(torch.randint(2**62, (), generator=generator))
        generator = torch.Generator(like.device).manual_seed(seed)
        # Of MPS, which has no float64, in float32.
        signs = torch.randint(0, 2, like.shape, generator=generator, device=like.device)
        return (signs * 2 - 1).to(torch.float32 if like.device.type == "mps" else torch.float64)
    # Of other devices on the CPU first, so that one seed gives one answer there.
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.float64)
    return signs.mul_(2).sub_(1).to(like.device)


def label_probe(
    logits: Tensor, weights: Tensor, targets: Tensor | None, generator: torch.Generator
) -> Tensor:
    r"""Gradient of the cross-entropy with respect to the logits, :math:`p - e_y`.

    Some positions at a time, in float64, so that a large vocabulary takes no more memory than its
    logits.

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
    logits = logits.detach()
    if targets is None:
        classes, scale = drawn_classes(logits, generator), weights.sqrt()
    else:
        # Without a target the class is below 0, which no number has; its weight is 0.
        classes, scale = targets.clamp_min(0), weights
    found = torch.empty_like(logits, memory_format=torch.contiguous_format)
    step = _positions_at_once(logits)
    pieces = (part.flatten(0, 1).split(step) for part in (logits, classes, scale, found))
    for some, index, times, into in zip(*pieces, strict=True):
        u = some.double().softmax(dim=-1)
        u[torch.arange(len(u), device=u.device), index] -= 1.0
        into.copy_(u.mul_(times.unsqueeze(-1)))
    return found


def drawn_classes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Classes drawn from the softmax, independently at every position.

    Where the distribution function passes a uniform number: one for each position, drawn on the
    CPU, so that all devices draw the same classes and no probabilities travel.

    Args:
        logits: ``[N, P, C]``.
        generator: On the CPU.

    Returns:
        ``[N, P]`` indices, on the logits' device.
    """
    passed = torch.rand(logits.shape[:2], generator=generator, dtype=torch.float64)
    step, passed = _positions_at_once(logits), passed.to(logits.device)
    pieces = (part.flatten(0, 1).split(step) for part in (logits, passed.unsqueeze(-1)))
    parts = [_passing(some.detach(), at) for some, at in zip(*pieces, strict=True)]
    return torch.cat(parts).reshape(passed.shape)


def _passing(logits: Tensor, at: Tensor) -> Tensor:
    """``[r]`` from logits ``[r, C]`` and shares ``[r, 1]``, below 1, of all probability."""
    risen = logits.double().softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(risen, at * risen[:, -1:], right=True).squeeze(-1)
    # A product next to 1 may round to the whole.
    return found.clamp_max(logits.shape[-1] - 1)


def _positions_at_once(logits: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE // max(logits.shape[-1], 1))
