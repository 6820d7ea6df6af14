"""Layers that compute something of their own with their weight, and how that is found out."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mpq.network.examples import Batch
from mpq.network.mapped import release
from mpq.network.modules import hooks
from mpq.network.open_weights import opened_parts
from mpq.network.weight_layout import layout_of

_METHODS = ("forward", "_conv_forward", "_output_padding")
"""What makes up the forward of torch's layers."""
_SAME = 1e-5
"""How far, relative to the largest number, an output that is computed again may be off."""
_SEED = 0x6D7071
"""No seed that users take: with theirs the first weight of a network would be drawn once more."""
_RUNNING: ContextVar[nn.Module | None] = ContextVar("_RUNNING", default=None)


def is_computed_again(module: nn.Module | None = None) -> bool:
    """Whether an ``Again`` is running (of this module): hooks then see no call of the pass."""
    running = _RUNNING.get()
    return running is not None and module in (None, running)


@contextmanager
def unseen(module: nn.Module) -> Iterator[None]:
    """Within this block hooks see no call of the pass, as while an ``Again`` of the module runs."""
    before = _RUNNING.set(module)
    try:
        yield
    finally:
        _RUNNING.reset(before)


def has_own_forward(module: nn.Module) -> bool:
    """Whether a layer's forward is another one than torch's (or Hugging Face's ``Conv1D``'s).

    It is asked what the forward *is*, not what the class is called: a subclass that only has
    another constructor is plain, and a plain class whose instance was given a ``forward`` is not.
    """
    if any(name in vars(module) for name in _METHODS):
        return True
    plain = next(kind for kind in type(module).__mro__ if _is_plain(kind))
    return any(
        getattr(type(module), name, None) is not getattr(plain, name, None) for name in _METHODS
    )


def _is_plain(kind: type) -> bool:
    is_torch = kind.__module__.startswith("torch.nn.modules.")
    return is_torch or (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


@final
@dataclass(frozen=True)
class Forwards:
    """What was found of the layers' forwards.

    Args:
        own: Layers that do not compute what torch's class does.
        hooked: Those of them whose output a hook of the user's changes.
        scaling: Those of them whose output channels scale with the weight and take a bias as it
            is, so that a BatchNorm can be folded into them.
        refused: Layer to the sentence that says why it cannot be quantized.
    """

    own: set[str] = field(default_factory=set)
    hooked: set[str] = field(default_factory=set)
    scaling: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, batch: Batch, layers: Mapping[str, nn.Module]) -> "Forwards":
        """Runs one batch, and every layer once more by itself, at its first call.

        Args:
            module: In evaluation mode; left as found.
            batch: On the module's device.
            layers: Name to module.
        """
        found, seen = cls(), set[str]()

        def look(
            name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any
        ) -> None:
            if name not in seen and not is_computed_again():
                seen.add(name)
                found._look(name, Again(layer, args, kwargs), output)

        handles = [
            layer.register_forward_hook(partial(look, name), with_kwargs=True)
            for name, layer in layers.items()
        ]
        with hooks(handles), torch.no_grad():
            module(*batch.args, **batch.kwargs)
        return found

    def _look(self, name: str, again: "Again", output: Any) -> None:
        kind = type(again.layer_module).__name__
        if not isinstance(output, Tensor):
            self.refused[name] = (
                f"layer {name!r} ({kind}) returns a {type(output).__name__} and not a tensor, "
                "which no precision can be tried on; leave it out (--exclude)"
            )
            return
        # By the numbers, and not by what the class promises.
        is_same = is_close(output, again.output())
        if not is_same:
            self.hooked.add(name)
            again = replace(again, with_hooks=True)
            is_same = is_close(output, again.output())
        if not is_same:
            self.refused[name] = (
                f"layer {name!r} ({kind}) gives another output when it is run again: it is random, "
                "or keeps something between calls, or its hooks change both input and output; "
                "leave it out (--exclude)"
            )
        elif again.with_hooks or has_own_forward(again.layer_module):
            self._look_at_own(name, again, output)

    def _look_at_own(self, name: str, again: "Again", output: Tensor) -> None:
        self.own.add(name)
        if output.numel() and not again.reads_weight(output):
            self.refused[name] = (
                f"layer {name!r} has a forward that does not read the layer's weight, so that no "
                "precision would change anything: was it replaced by a function of another module "
                "(a closure)? Write a subclass instead, or leave the layer out (--exclude)"
            )
        elif again.scales(output):
            self.scaling.add(name)


@final
@dataclass(frozen=True, eq=False)
class Again:
    """One call of a layer, to be computed again.

    Args:
        layer_module: The layer; left as it is, buffers included.
        args: What its ``forward`` was called with, by position.
        kwargs: And by name.
        with_hooks: Whether the user's hooks on it are called, too, because one changes the output.
    """

    layer_module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    with_hooks: bool = False

    def output(
        self,
        replaced: Mapping[str, Tensor] | None = None,
        change: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> Any:
        """What ``forward`` returns.

        Args:
            replaced: Parameters by name, such as ``weight``, that others take the place of.
            change: Applied to every other parameter and buffer.
        """
        # Layers that functions call inside of this one stay as they are: they are no attributes,
        # as which `functional_call` looks for them, and have no gradient of their own.
        opened = {id(part.weight) for part in opened_parts(self.layer_module)}
        parameters = self.layer_module.named_parameters()
        state = {
            # Parameters are read; buffers may be written, and not those of the layer.
            **{name: change(p) for name, p in parameters if id(p) not in opened},
            **{name: change(b).clone() for name, b in self.layer_module.named_buffers()},
            **(replaced or {}),
        }
        # Named as `_Bare` holds them: `functional_call` finds parameters by their path.
        named = {f"layer_module.{name}": tensor for name, tensor in state.items()}
        bare = _Bare(self.layer_module, self.with_hooks)
        with unseen(self.layer_module):
            found = functional_call(bare, named, self.args, dict(self.kwargs))
        release(self.layer_module.parameters())
        return found

    def reads_weight(self, output: Tensor) -> bool:
        """Whether the output is another one with another weight."""
        weight = self._weight
        # Of no simple relation to the weight: a standardised one is blind to factor and offset.
        generator = torch.Generator().manual_seed(_SEED)
        other = torch.randn(weight.shape, generator=generator).to(weight)
        found = self.output({"weight": other})
        return not torch.equal(found, output) if isinstance(found, Tensor) else True

    def scales(self, output: Tensor) -> bool:
        """Whether twice the weight of an output channel gives twice that channel, and a bias adds.

        Both are what folding a BatchNorm takes: a scale behind the layer would scale the norm's
        offset as well.
        """
        if output.ndim < 2:
            return False
        layout, weight = layout_of(self.layer_module), self._weight
        rows = layout.to_rows(weight)
        if output.shape[1] != len(rows):
            return False
        factors = torch.ones(len(rows), dtype=weight.dtype, device=weight.device)
        factors[::2] = 2.0  # a power of two is exact
        scaled = layout.from_rows(rows * factors[:, None], tuple(weight.shape))
        # Also where there is none: folding makes one.
        offset = torch.zeros_like(factors) + output.detach().abs().max()
        bias = getattr(self.layer_module, "bias", None)
        shifted = bias.detach() * factors + offset if isinstance(bias, Tensor) else offset
        axes = (-1, *[1] * (output.ndim - 2))
        expected = output * factors.reshape(axes) + offset.reshape(axes)
        return is_close(expected, self.output({"weight": scaled, "bias": shifted}))

    @property
    def _weight(self) -> Tensor:
        weight = self.layer_module.weight
        assert isinstance(weight, Tensor)
        return weight.detach()


class _Bare(nn.Module):
    """Calls a layer's ``forward`` itself, past the hooks on it, unless they are wanted."""

    def __init__(self, layer_module: nn.Module, with_hooks: bool) -> None:
        super().__init__()
        self.layer_module = layer_module
        self.with_hooks = with_hooks
        self.training = layer_module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        called = self.layer_module if self.with_hooks else self.layer_module.forward
        return called(*args, **kwargs)


def is_close(expected: Tensor, found: Any) -> bool:
    """Whether a tensor is another one up to rounding."""
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    if not expected.numel() or torch.equal(found, expected):
        return True
    # In half precision, whose steps are coarser, a few steps.
    allowed = max(_SAME, 8 * torch.finfo(expected.dtype).eps) * expected.abs().max()
    return bool((found - expected).abs().max() <= allowed)
