"""Layer-wise relevance propagation as a backward pass: torch functions with changed gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mpq.network.modules import hooks

_SMALLEST = 1e-10
"""What a number of about 0 is divided as; far below any ``epsilon``, which is applied later."""


@contextmanager
def propagating(module: nn.Module, epsilon: float) -> Iterator[None]:
    """Within this block a module's graph carries relevance; see ``RelevanceRules``."""
    with whole_activations(module), RelevanceRules(epsilon):
        yield


class RelevanceRules(TorchFunctionMode):
    r"""Within this block a forward pass builds a graph whose gradients carry relevance.

    Relevance ``R`` is kept as :math:`G = R / x` for the value ``x`` that it belongs to, so that
    layer-wise relevance propagation is a backward pass through changed functions:

    ===========================  ================================================================
    linear, convolution          the gradient, times :math:`z / (z + \epsilon \, \mathrm{sign} z)`
                                 at the output ``z`` (the rule LRP-epsilon)
    nonlinearity ``a`` of ``z``  :math:`a(z) / z` (the identity rule: all goes on to ``z``)
    product of ``k`` values      the gradient over ``k`` (the uniform rule): ``q k^T``, gates
    softmax                      the gradient: :math:`R_i = x_i (R_i' - s_i \sum_j R_j')`
    normalisation, division      the gradient with the divisor held constant
    addition and all else        the gradient
    ===========================  ================================================================

    For ReLU, maxima and sums these *are* the gradient. A value counts where it requires a gradient:
    parameters, masks and positions do not. Rules see what is called by name: inside
    ``torch.compile``, a fused kernel of another package or ``F.multi_head_attention_forward``,
    the plain gradient is taken. At additions and products nothing is divided, so that the small
    share that LRP-epsilon takes there is left out.

    References: Bach et al. (2015), doi:10.1371/journal.pone.0130140 (LRP-epsilon); Achtibat et al.
    (2024), AttnLRP, arXiv:2402.05602 (attention, gates, normalisation: propositions 3.1 to 3.4).

    Args:
        epsilon: What keeps the quotient at a layer's output finite; above 0.
    """

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self._rules = {**dict.fromkeys(_LINEAR, partial(_linear, epsilon)), **_OTHERS}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        rule = self._rules.get(getattr(func, "__name__", ""))
        if rule is None:
            return func(*args, **kwargs)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        return rule(func, args, kwargs)


class _Rule(Protocol):
    """How one function is computed within ``RelevanceRules``, where no further rule applies."""

    def __call__(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], /
    ) -> Any:
        """What the function returns, with another gradient."""


class _Identity(torch.autograd.Function):
    """``a(x)`` with ``a(x) / x`` for a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
        # A function may work in place, and the quotient below still needs `x` as it was.
        given = x.clone()
        value = function(given)
        # 1e-10 is 0 in float16, whose smallest normal number takes its place.
        smallest = max(_SMALLEST, torch.finfo(x.dtype).tiny)
        # By copysign: the sign of 0 is 0, which would leave the divisor at 0.
        ctx.save_for_backward(value / (x + torch.copysign(torch.full_like(x, smallest), x)))
        if value is not given:
            return value
        ctx.mark_dirty(x)  # the function works in place, and others may read what it leaves
        return x.copy_(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (quotient,) = ctx.saved_tensors
        return gradients[0] * quotient, None


def identity_rule(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each number, through which all relevance goes on to its argument."""
    result: Tensor = _Identity.apply(x, function)  # type: ignore[no-untyped-call]
    return result


@contextmanager
def whole_activations(module: nn.Module) -> Iterator[None]:
    """Within this block, activation modules of Hugging Face are one nonlinearity each.

    Some of them are written as a product, such as ``x (1 + tanh(...)) / 2``, whose constant 1
    would take its share of the relevance.
    """
    handles = []
    for activation in module.modules():
        if type(activation).__module__ == "transformers.activations":
            inputs: list[Tensor] = []
            handles += [
                activation.register_forward_pre_hook(partial(_cut, inputs)),
                activation.register_forward_hook(partial(_join, inputs)),
            ]
    with hooks(handles):
        yield


def _cut(inputs: list[Tensor], _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    inputs.append(args[0])
    # Nothing inside is recorded: one rule, in `_join`, stands for all of it.
    return (args[0].detach(), *args[1:])


def _join(inputs: list[Tensor], _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
    x = inputs.pop()
    return identity_rule(x, lambda _: output) if x.requires_grad else output


def _linear(
    epsilon: float, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    z = _product(func, args, kwargs)
    if z.requires_grad:
        size = z.detach().abs()
        z.register_hook(partial(torch.mul, size / (size + epsilon)))  # z may be changed in place
    return z


def _product(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    count = _count([*args, *kwargs.values()])
    value = func(*args, **kwargs)
    if count > 1 and value.requires_grad:
        value.register_hook(lambda g: g / count)
    return value


def _count(values: Any) -> int:
    """How many tensors in a list, or in lists therein, depend on a layer."""
    if isinstance(values, Tensor):
        return int(values.requires_grad)
    return sum(map(_count, values)) if isinstance(values, tuple | list) else 0


def _nonlinear(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    x, *rest = args
    if not _tracked(x):
        return func(*args, **kwargs)
    return identity_rule(x, lambda x: func(x, *rest, **kwargs))


def _tracked(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()


def _power(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    exponent = args[1] if len(args) > 1 else kwargs["exponent"]
    if not isinstance(exponent, int | float):
        return func(*args, **kwargs)
    # A negative power is a divisor: x ** -0.5 in a norm that is written out.
    return (_constant if exponent < 0 else _nonlinear)(func, args, kwargs)


def _constant(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return func(*args, **kwargs).detach()


def _divide(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    rest = map(_detached, args[1:])
    return func(args[0], *rest, **{name: _detached(value) for name, value in kwargs.items()})


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _replaced_by(function: Callable[..., Tensor]) -> _Rule:
    """The rule that computes a function, by another one that takes the same arguments."""

    def rule(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        is_tracked = any(map(_tracked, [*args, *kwargs.values()]))
        return (function if is_tracked else func)(*args, **kwargs)

    return rule


def _instance_norm(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """As ``group_norm`` of single channels; ``torch.instance_norm`` has another signature."""
    # With running statistics it is linear, and the plain gradient is right.
    is_known = func is nn.functional.instance_norm and kwargs["use_input_stats"]
    if not is_known or not _tracked(args[0]):
        return func(*args, **kwargs)
    num_groups = args[0].shape[1]
    return group_norm(args[0], num_groups, kwargs["weight"], kwargs["bias"], kwargs["eps"])


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """``F.layer_norm`` with a constant standard deviation; the mean is a linear function."""
    axes = tuple(range(-len(normalized_shape), 0))
    return _affine(_scaled(x, axes, eps, is_centred=True), weight, bias)


def rms_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``F.rms_norm`` with a constant root mean square."""
    axes = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(_scaled(x, axes, eps, is_centred=False), weight, None)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    """``F.group_norm`` with constant standard deviations; means are linear functions."""
    groups = x.reshape(len(x), num_groups, -1)
    scaled = _scaled(groups, (-1,), eps, is_centred=True).reshape(x.shape)
    shape = (-1, *[1] * (x.ndim - 2))
    by_channel = (None if p is None else p.reshape(shape) for p in (weight, bias))
    return _affine(scaled, *by_channel)


def glu(x: Tensor, dim: int = -1) -> Tensor:
    """``F.glu`` as a product of a value and a gate."""
    value, gate = x.chunk(2, dim)
    product: Tensor = _product(torch.mul, (value, identity_rule(gate, torch.sigmoid)), {})
    return product


def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: Any) -> Tensor:
    """``F.normalize`` with constant norms."""
    norm: Tensor = torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True)
    return x / norm.clamp_min(eps)


def _scaled(x: Tensor, axes: tuple[int, ...], eps: float, is_centred: bool) -> Tensor:
    # Statistics of half-precision numbers overflow or lose digits in their own dtype.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if is_centred:
        wide = wide - wide.mean(axes, keepdim=True)
    mean_square = wide.detach().square().mean(axes, keepdim=True)
    return (wide * (mean_square + eps).rsqrt()).to(x.dtype)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001 - the network is in evaluation mode
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``F.scaled_dot_product_attention`` with the rule for products, written out."""
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(shared, -3) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores: Tensor = _product(torch.matmul, (query, key.transpose(-2, -1)), {}) * scale
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if is_causal:
        # From the top left corner, as torch has it where there are more keys than queries.
        hidden = torch.ones_like(hidden).triu(1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = hidden | ~attn_mask
    elif attn_mask is not None:
        # Minus infinity hides as False does; other numbers are biases.
        scores, hidden = scores + attn_mask, hidden | attn_mask.isneginf()
    # Filled twice, so that a row that is hidden altogether gives zeros, not NaN.
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).masked_fill(hidden, 0.0)
    mixed: Tensor = _product(torch.matmul, (weights, value), {})
    return mixed


_LINEAR = (
    *("linear", "addmm", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
_PRODUCTS = ("matmul", "bmm", "mm", "baddbmm", "einsum", "mul", "mul_", "multiply")
# ReLU, its leaky kind and maxima are missing because their gradient is a(z) / z already.
_NONLINEAR = (
    *("gelu", "silu", "mish", "elu", "selu", "celu", "hardswish", "hardsigmoid", "hardtanh"),
    *("relu6", "softplus", "softsign", "logsigmoid", "log_sigmoid", "square", "clamp"),
    *("tanh", "tanh_", "sigmoid", "sigmoid_", "erf"),
)
_OTHERS: Mapping[str, _Rule] = MappingProxyType(
    {
        **dict.fromkeys(_NONLINEAR, _nonlinear),
        **dict.fromkeys(_PRODUCTS, _product),
        **dict.fromkeys(("div", "div_", "divide", "true_divide"), _divide),
        **dict.fromkeys(("rsqrt", "reciprocal", "__rdiv__", "__rtruediv__"), _constant),
        "pow": _power,
        "glu": _replaced_by(glu),
        "layer_norm": _replaced_by(layer_norm),
        "rms_norm": _replaced_by(rms_norm),
        "group_norm": _replaced_by(group_norm),
        "instance_norm": _instance_norm,
        "normalize": _replaced_by(normalize),
        "scaled_dot_product_attention": _replaced_by(attention),
    }
)
