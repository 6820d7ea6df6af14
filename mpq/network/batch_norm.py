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
