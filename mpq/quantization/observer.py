"""Ranges of activations, observed on calibration examples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mpq._support.progress import track
from mpq.errors import ModelError
from mpq.network.arguments import input_of
from mpq.network.examples import Calibration
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.precision import Granularity, Precision, TensorFormat
from mpq.quantization.ranges import RANGE_METHODS, ActivationRange, RangeMethod

SAMPLES_PER_BATCH = 65536
"""Numbers of each layer's input that are kept from every batch, drawn at random, for ranges."""


def needs_range(tensor_format: TensorFormat) -> bool:
    """Whether a format's range must be calibrated."""
    return tensor_format.granularity is Granularity.TENSOR


@final
@dataclass(frozen=True)
class ActivationRanges:
    """Calibrated ranges of layers' inputs, one per layer and static format.

    Args:
        known: Layer name and format to range.
    """

    known: Mapping[tuple[str, TensorFormat], ActivationRange]

    @classmethod
    def calibrate(
        cls,
        network: Network,
        data: Calibration,
        candidates: Iterable[Precision],
        method: str = "mse",
    ) -> Self:
        """Ranges of every layer for the static formats among the choices, in one forward pass.

        Args:
            network: Whose layers' inputs are observed.
            data: What is run through it.
            candidates: Precisions that may be used.
            method: How a range is chosen from the observed numbers, as ``RANGE_METHODS`` takes it.

        Raises:
            UnknownNameError: If there is no such method.
        """
        chosen = RANGE_METHODS.build(method)
        formats = dict.fromkeys(c.activation for c in candidates if needs_range(c.activation))
        # Only static formats need numbers: without one a pass over the data is saved.
        samples = observe_inputs(network, data, chosen) if formats else {}
        known: dict[tuple[str, TensorFormat], ActivationRange] = {}
        for name, sample in samples.items():
            for tensor_format in formats:
                number, symmetric = tensor_format.number, tensor_format.symmetric
                # A static format has one scale for the whole input, so that all of it is one row.
                low, high = chosen.ends(sample[None], number, symmetric)
                known[name, tensor_format] = ActivationRange(float(low), float(high)).with_zero
        return cls(known)

    def of(self, layer: str, tensor_format: TensorFormat) -> ActivationRange | None:
        """Range of a layer's input for a format; ``None`` where the format needs none.

        Raises:
            ModelError: If a range is needed and was not calibrated.
        """
        if not needs_range(tensor_format):
            return None
        found = self.known.get((layer, tensor_format))
        if found is None:
            raise ModelError(
                f"layer {layer!r} has no calibrated activation range for "
                f"{tensor_format.number.name}; calibrate with the precisions that are used"
            )
        return found


def observe_inputs(network: Network, data: Calibration, method: RangeMethod) -> dict[str, Tensor]:
    """What a range is chosen from: extremes where they suffice, else a random sample of each batch.

    Evenly spaced numbers would not do: the spacing hits the same column or channel every time.

    Returns:
        Layer name to ``[M]`` float32; integer inputs (embeddings) are left out.
    """
    calls = {layer.name: layer.calls for layer in network.layers}
    alike = {  # layers that read the very same tensor, and nothing else, share its sample
        layer.name: layer.input_of
        for layer in network.layers
        if layer.input_of is not None and calls[layer.name] == calls[layer.input_of] == 1
    }
    samples: dict[str, list[Tensor]] = {name: [] for name in calls if name not in alike}

    # Of its own, on the CPU: the global random state stays as it is, and all devices draw alike.
    generator = torch.Generator().manual_seed(0)

    def observe(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = input_of(args, kwargs)
        if read is not None and read.is_floating_point() and read.numel():
            x = read.detach().flatten()
            if method.reads_extremes_only:
                samples[name].append(torch.stack(x.aminmax()).float())
            elif x.numel() <= SAMPLES_PER_BATCH:
                samples[name].append(x.float())
            else:
                # With replacement, as a permutation of all numbers would be larger than the input.
                drawn = torch.randint(x.numel(), (SAMPLES_PER_BATCH,), generator=generator)
                samples[name].append(x[drawn.to(x.device)].float())

    layer_modules = ((name, network.layer_module(name)) for name in samples)
    handles = [
        m.register_forward_pre_hook(partial(observe, name), with_kwargs=True)
        for name, m in layer_modules
    ]
    with hooks(handles), torch.no_grad():
        for batch in track(network.batches(data), "activation ranges", data.num_batches):
            network.outputs(batch)
    found = {name: torch.cat(parts) for name, parts in samples.items() if parts}
    return found | {name: found[owner] for name, owner in alike.items() if owner in found}
