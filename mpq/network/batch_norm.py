"""BatchNorm folded into the convolution that feeds it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpq.network.weight_layout import layout_of


def fold_batch_norm(model: nn.Module, pairs: Mapping[str, str]) -> None:
    r"""Folds in place; the model's outputs stay the same up to rounding.

    .. math:: w' = w \, \gamma / \sqrt{\sigma^2 + \epsilon}, \quad
        b' = (b - \mu) \, \gamma / \sqrt{\sigma^2 + \epsilon} + \beta

    per output channel. The convolution gets new parameters, the BatchNorm becomes an identity.

    Args:
        model: The network, in evaluation mode, so that BatchNorm uses its running statistics.
        pairs: Name of the convolution to the name of the BatchNorm that alone reads its output.
    """
    for convolution, norm in pairs.items():
        norm_module = model.get_submodule(norm)
        assert isinstance(norm_module, _BatchNorm)
        _fold_pair(model.get_submodule(convolution), norm_module)
        # The forward pass may use another of its names, and would normalise a second time there.
        named = list(model.named_modules(remove_duplicate=False))
        for name in [name for name, module in named if module is norm_module]:
            model.set_submodule(name, nn.Identity().eval())


def fold_refusal(convolution: nn.Module, norm: nn.Module) -> str | None:
    """Why a BatchNorm cannot have been folded into a layer; ``None``: it can, by their shapes.

    Whether the one reads the other's output, only a run of the network shows: ``changed_output``.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return "is no BatchNorm with running statistics"
    # An embedding has no bias for the shift.
    weight = convolution.weight
    assert isinstance(weight, Tensor)
    is_embedding = isinstance(convolution, nn.Embedding)
    channels = 0 if is_embedding else len(layout_of(convolution).to_rows(weight))
    if channels != norm.num_features:
        return f"has {norm.num_features} channels, the layer {channels}"
    return None


def changed_output(before: Tensor, after: Tensor) -> float:
    """Largest difference of outputs before and after folding; 0 where it may be rounding."""
    # The largest, as one broken channel would vanish in a mean.
    error = float((after - before).abs().max())
    # Rounding, unlike a wrong fold, is a multiple of the dtype's eps: 1e-3 is 8,000 of float32's,
    # and coarser types get 8 of their own.
    allowed = max(1e-3, 8 * torch.finfo(before.dtype).eps) * float(before.abs().max())
    return error if error > allowed else 0.0


def _fold_pair(convolution: nn.Module, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        # In float64, rounded once at the end: in half precision every factor would be rounded.
        scale = (norm.running_var.double() + norm.eps).rsqrt()  # [O]
        # With affine=False there is neither weight nor bias.
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if isinstance(bias, Tensor):
            shift = shift + bias.double() * scale
        # A transposed convolution does not have its output channels on the first axis.
        layout = layout_of(convolution)
        rows = layout.to_rows(weight.double()) * scale[:, None]
        folded = layout.from_rows(rows, tuple(weight.shape)).to(weight.dtype)
        # A new parameter, because the old one's memory is the user's model's.
        convolution.weight = nn.Parameter(folded.contiguous(), requires_grad=False)
        convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
