"""How large what layers read is, example by example: what clusters of steps are found by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq._support.arrays import Array
from mpq._support.progress import track
from mpq.network.arguments import input_of
from mpq.network.examples import Calibration
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.observer import round_last


@final
@dataclass(frozen=True, eq=False)
class StepLogs:
    """Logarithms of the ranges that inputs have in every example.

    Args:
        layers: ``L`` names of layers whose rows are those of examples, in every batch.
        values: ``[N, L]``, finite.
        shared: Layers that read rows of which nobody can tell the example, where a batch has
            several steps: all steps have one range there.
    """

    layers: tuple[str, ...]
    values: Array
    shared: tuple[str, ...]


def step_logs(network: Network, data: Calibration, steps: Sequence[float]) -> StepLogs:
    """Observes the inputs of all layers in one forward pass.

    Args:
        network: Whose layers' inputs are observed.
        data: What is run through it.
        steps: ``[N]`` of every example.
    """
    seen = _Seen(shared=dict.fromkeys(_shared(network)))
    handles = []
    for layer in network.layers:
        layer_module = network.layer_module(layer.name)
        look = partial(seen.look, layer.name)
        handles.append(layer_module.register_forward_pre_hook(look, with_kwargs=True))
        round_last(layer_module)
    position = 0
    with hooks(handles), torch.no_grad():
        whole = data.uncut
        for batch in track(network.batches(whole), "ranges by step", whole.num_batches):
            for piece in batch.pieces(data.at_once):
                some = steps[position : position + piece.size]
                seen.begin(piece.size, has_one_step=len(set(some)) == 1)
                network.outputs(piece)
                seen.end()
                position += piece.size
    return seen.logs([layer.name for layer in network.layers])


def _shared(network: Network) -> list[str]:
    """Layers of which it is known that their rows are not those of examples in order."""
    axes = [layer.name for layer in network.layers if layer.batch_axis]
    return [*axes, *network.reach.partly]


@dataclass(eq=False)
class _Seen:
    """What was seen so far: of each layer ``[N]`` of every batch."""

    shared: dict[str, None]
    batches: list[dict[str, Array]] = field(default_factory=list)
    _now: dict[str, Tensor] = field(default_factory=dict)
    _count: int = 0
    _has_one_step: bool = False

    def begin(self, count: int, has_one_step: bool) -> None:
        self._now, self._count, self._has_one_step = {}, count, has_one_step

    def look(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(args, kwargs)
        if x is None or not x.is_floating_point() or not x.numel():
            return
        if self._has_one_step:
            # Whatever its rows are, they are of that step.
            rows = x.detach().reshape(1, -1).expand(self._count, -1)
        elif x.ndim > 1 and len(x) % self._count == 0:
            rows = x.detach().reshape(self._count, -1)
        else:
            self.shared[name] = None
            return
        # The range of a grid has 0 in it.
        span = rows.amax(dim=1).clamp(min=0) - rows.amin(dim=1).clamp(max=0)
        known = self._now.get(name)
        self._now[name] = span if known is None else torch.maximum(known, span)

    def end(self) -> None:
        """Of a batch: one transfer for all layers."""
        names = list(self._now)
        if names:
            first = self._now[names[0]]
            spans = torch.stack([self._now[name].float().to(first.device) for name in names])
            self.batches.append(dict(zip(names, spans.cpu().double().numpy(), strict=True)))

    def logs(self, order: Sequence[str]) -> StepLogs:
        """Of all batches; a layer that one of them does not reach is left out."""
        reached = [set(batch) for batch in self.batches]
        everywhere = set.intersection(*reached) if reached else set()
        names = tuple(n for n in order if n in everywhere and n not in self.shared)
        columns = [np.concatenate([batch[name] for batch in self.batches]) for name in names]
        spans = np.stack(columns, axis=1) if columns else np.zeros((0, 0))
        # A layer that reads zeros alone, as the first of a network that begins with nothing.
        values = np.log(spans.clip(min=np.finfo(np.float32).tiny))
        return StepLogs(names, values, tuple(n for n in order if n in self.shared))
