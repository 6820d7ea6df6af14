"""The simulation with what static layers round besides: their outputs, and their biases."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.backends.litert.graph import Form
from mpq.backends.litert.requantizing import IN_FLOAT64, Rounding, requantized
from mpq.errors import ModelError
from mpq.network.arguments import input_of, with_input
from mpq.network.examples import Batch
from mpq.network.modules import device_of, hooks
from mpq.network.own_forward import Again
from mpq.quantization.grid import Grid
from mpq.quantization.input_sample import SAMPLES_PER_BATCH
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounding import static_grid
from mpq.quantization.tensor_format import TensorFormat

CUTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "NONE": lambda x: x,
    "RELU": F.relu,
    "RELU_N1_TO_1": lambda x: x.clamp(-1, 1),
    "RELU6": F.relu6,
}
"""What an operator does to its sums before they are stored."""


def form_of(grid: Grid) -> Form:
    """How a tensor on a static grid of 8 or 16 bits is stored: codes are signed in the file."""
    return Form(float(grid.scale), int(grid.signed_zero_point), grid.number.bits)


@final
@dataclass(frozen=True)
class Output:
    """An output whose range has to be measured.

    Args:
        tensor_format: How it is stored.
        cut: Of ``CUTS``, what happens to it first.
    """

    tensor_format: TensorFormat
    cut: str


@torch.no_grad()
def measured_forms(
    module: nn.Module, batches: Iterable[Batch], wanted: Mapping[str, Output], method: str
) -> dict[str, Form]:
    """How outputs of layers are stored, by running examples in floating point.

    Args:
        module: The network with its original weights, left as found.
        batches: Examples, one after the other.
        wanted: Layer name to what is stored of it.
        method: As ``RANGE_METHODS`` takes it.

    Raises:
        ModelError: If the examples do not reach one of them.
    """
    chosen = RANGE_METHODS.build(method)
    samples: dict[str, list[Tensor]] = {name: [] for name in wanted}
    draws = torch.Generator().manual_seed(0)

    def observe(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:  # noqa: ARG001
        numbers = CUTS[wanted[name].cut](output.detach()).flatten().float().cpu()
        if not len(numbers):  # an expert may be called with no rows at all
            return
        if chosen.reads_extremes_only:
            numbers = torch.stack(numbers.aminmax())
        elif len(numbers) > SAMPLES_PER_BATCH:
            numbers = numbers[torch.randint(len(numbers), (SAMPLES_PER_BATCH,), generator=draws)]
        samples[name].append(numbers)

    handles = [
        module.get_submodule(name).register_forward_hook(partial(observe, name)) for name in wanted
    ]
    with hooks(handles):
        for batch in batches if wanted else ():
            on_device = batch.to(device_of(module))
            module(*on_device.args, **on_device.kwargs)
    if missed := [name for name, seen in samples.items() if not seen]:
        raise ModelError(f"litert: the examples reach no output of {', '.join(missed)}")
    return {name: _measured(torch.cat(samples[name]), x, chosen) for name, x in wanted.items()}


def _measured(sample: Tensor, output: Output, chosen: Any) -> Form:
    tensor_format = output.tensor_format
    low, high = chosen.ends(sample[None], tensor_format.number, tensor_format.symmetric)
    ends = ActivationRange(float(low), float(high)).with_zero
    return form_of(static_grid(tensor_format, ends, torch.device("cpu")))


@final
@dataclass(frozen=True, eq=False)
class StoredLayer:
    """What becomes of a static layer's sums.

    Args:
        reads: How its input is stored.
        makes: How its output is stored.
        weight: Its codes, of the weight's shape, float64.
        scales: ``[O]`` float32 of the weight.
        bias: ``[O]`` its codes, float64, or ``None``.
        rounding: Of the kernel.
    """

    reads: Form
    makes: Form
    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    rounding: Rounding

    @property
    def unit(self) -> Tensor:
        """``[O]`` float32: what one unit of its sums is worth."""
        return torch.tensor(self.reads.scale) * self.scales

    def biases(self, given: Tensor) -> Tensor:
        """``[O]`` float64 in units of its sums.

        Args:
            given: ``[O]`` float32 of the layer, on the CPU; it may be a hair off ``stored_bias``,
                which does not hold all digits of a code.
        """
        assert self.bias is not None
        return self.bias + (given.double() - self.stored_bias.double()) / self.unit.double()

    @property
    def stored_bias(self) -> Tensor:
        """``[O]`` float32, of a layer that has one."""
        assert self.bias is not None
        return (self.bias * self.unit.double()).float()

    def output(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        """A forward hook: the output of an input that lies on its grid already.

        Args:
            layer: A linear layer or convolution; its bias counts, which may be a hair off.
            args: With its input.
            kwargs: The same.
            output: What it computed in float32, whose sums are not exact.
        """
        x = input_of(args, kwargs)
        assert x is not None
        device = x.device
        codes = (x.double() / self.reads.scale).round()
        channels = -1 if isinstance(layer, nn.Linear) else 1
        shape = [1] * x.ndim
        shape[channels] = -1
        # By its own forward, with its padding, in float64, in which sums are exact.
        given = {"weight": self.weight.to(device)}
        if self.bias is not None:
            assert isinstance(layer.bias, Tensor)
            given["bias"] = self.biases(layer.bias.detach().cpu()).to(device)
        sums: Tensor = Again(layer, *with_input(args, kwargs, codes)).output(given)
        unit = self.unit
        if self.rounding in IN_FLOAT64:
            unit = self.reads.scale * self.scales.double()
        found = requantized(sums, unit.to(device).view(shape), self.makes.scale, self.rounding)
        kept: Tensor = self.makes.cut(found)
        return (kept.float() * self.makes.scale).to(output.dtype)


def store_outputs(module: nn.Module, layers: Mapping[str, StoredLayer]) -> nn.Module:
    """A simulation whose static layers give what their kernels store: changed in place.

    Args:
        module: A simulation, whose inputs are rounded already.
        layers: Its static layers by name.
    """
    for name, stored in layers.items():
        layer = module.get_submodule(name)
        if stored.bias is not None:
            kept = stored.stored_bias.to(device_of(module))
            layer.bias = nn.Parameter(kept, requires_grad=False)
        layer.register_forward_hook(stored.output, with_kwargs=True)
    return module
