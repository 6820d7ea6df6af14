"""Ranges of activations, observed on calibration examples."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeAlias, final

import torch
from torch import nn

from mpq._support.progress import track
from mpq._support.ranks import Ranks
from mpq.errors import ModelError
from mpq.network.arguments import input_of
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.input_sample import InputSample, Samples
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange, RangeMethod
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.step_cases import range_of_steps
from mpq.quantization.tensor_format import Granularity, TensorFormat


def needs_range(tensor_format: TensorFormat) -> bool:
    """Whether a format's range must be calibrated."""
    kinds = (Granularity.TENSOR, Granularity.INPUT_CHANNEL, Granularity.FIRST_APART)
    return tensor_format.granularity in kinds


class RoundsInputs:
    """Marks hooks that round what a layer reads: that is observed before they do."""


def round_last(layer_module: nn.Module) -> None:
    """Puts the hooks that round inputs behind all others, in place.

    What is read is then the input before it is rounded, but after the user's own hooks.
    """
    found = layer_module._forward_pre_hooks
    for key in [key for key, hook in found.items() if isinstance(hook, RoundsInputs)]:
        found.move_to_end(key)  # type: ignore[attr-defined]


Observe: TypeAlias = Callable[
    [Network, Calibration, RangeMethod, Collection[TensorFormat]], Mapping[str, InputSample]
]
"""How layers' inputs are observed: as ``observe_inputs``, or with gradients."""


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
        observe: "Observe | None" = None,
    ) -> Self:
        """Ranges of every layer for the static formats among the choices, in one forward pass.

        Args:
            network: Whose layers' inputs are observed.
            data: What is run through it.
            candidates: Precisions that may be used.
            method: How a range is chosen from the observed numbers, as ``RANGE_METHODS`` takes it.
            observe: How inputs are observed; unset: by ``observe_inputs``.

        Raises:
            UnknownNameError: If there is no such method.
        """
        chosen = RANGE_METHODS.build(method)
        formats = dict.fromkeys(c.activation for c in candidates if needs_range(c.activation))
        # Only static formats need numbers: without one a pass over the data is saved.
        samples = (observe or observe_inputs)(network, data, chosen, formats) if formats else {}
        return cls({(n, f): s.range(chosen, f) for n, s in samples.items() for f in formats})

    def of(self, layer: str, tensor_format: TensorFormat) -> ActivationRange | None:
        """Range of a layer's input for a format; ``None`` where the format needs none.

        Raises:
            ModelError: If a range is needed and was not calibrated.
        """
        if not needs_range(tensor_format):
            return None
        found = self.known.get((layer, tensor_format))
        if found is None and tensor_format.steps is not None:
            return range_of_steps(tensor_format, partial(self._of_width, layer))
        if found is None:
            raise ModelError(
                f"layer {layer!r} has no calibrated activation range for "
                f"{tensor_format.number.name}; calibrate with the precisions that are used"
            )
        return found

    def _of_width(self, layer: str, tensor_format: TensorFormat) -> ActivationRange:
        found = self.of(layer, tensor_format)
        assert found is not None  # a static format
        return found


def observe_inputs(
    network: Network,
    data: Calibration,
    method: RangeMethod,
    formats: Collection[TensorFormat] = (),
    ranks: Ranks | None = None,
) -> dict[str, InputSample]:
    """What a range is chosen from: extremes where they suffice, else a random sample of each batch.

    Evenly spaced numbers would not do: the spacing hits the same column or channel every time.

    Of a quantized network what inputs are before they are rounded.

    Args:
        network: Whose layers' inputs are observed.
        data: What is run through it.
        method: That will choose.
        formats: That it will choose for; some look at channels or positions.
        ranks: Who shares the batches; all of them have the samples of all.

    Returns:
        Layer name to its sample; integer inputs (embeddings) are left out.
    """
    calls = {layer.name: layer.calls for layer in network.layers}
    alike = {  # layers that read the very same tensor, and nothing else, share its sample
        layer.name: layer.input_of
        for layer in network.layers
        if layer.input_of is not None and calls[layer.name] == calls[layer.input_of] == 1
    }
    names = sorted(calls.keys() - alike.keys())

    def observed(data: Calibration) -> Samples:
        samples = Samples(formats, method.reads_extremes_only)
        _observe(network, data, names, samples, ranks)
        return samples

    samples = halved("finding ranges of inputs", data, observed, network.why_uncut)
    if ranks is not None:
        for rank, drawn in enumerate(ranks.gathered(samples.calls)):
            if rank != ranks.rank:
                samples.extend(drawn)
    found = samples.of()
    # In the network's order, whatever was called first.
    named = ((name, found.get(alike.get(name, name))) for name in calls)
    return {name: sample for name, sample in named if sample is not None}


def _observe(
    network: Network,
    data: Calibration,
    names: Collection[str],
    samples: Samples,
    ranks: Ranks | None,
) -> None:
    """Draws from what some layers read of all batches, or of those of this process."""

    def observe(
        name: str, layer_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        read = input_of(args, kwargs)
        if read is not None and read.is_floating_point() and read.numel():
            samples.add(name, layer_module, read.detach())

    handles = []
    for name in names:
        layer_module = network.layer_module(name)
        seen = partial(observe, name)
        handles.append(layer_module.register_forward_pre_hook(seen, with_kwargs=True))
        round_last(layer_module)
    with hooks(handles), torch.no_grad():
        whole = data.uncut
        batches = track(network.batches(whole), "activation ranges", whole.num_batches)
        for batch in batches if ranks is None else ranks.own(batches):
            for piece in batch.pieces(data.at_once):
                samples.begin(piece)
                network.outputs(piece)
