"""How far a simulation moves by itself where the last digits of its sums are other ones.

A runtime adds up in another order. What that changes grows from layer to layer: in a deep network
of few bits so much that float32 has only the first digits of the outputs, in torch as elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mpq.backends.layerwise import traced
from mpq.network.examples import Batch
from mpq.network.modules import hooks

TIES: Final = 2.0
"""How many times as far as the simulation moves by ties a runtime may be from it."""
NUM_DRAWS: Final = 3
"""Of which the largest counts where the worst example is judged, as that one varies much."""
MOST: Final = 0.01
"""Standard deviations of the outputs: what is never accepted of the worst example by this rule."""


@final
@dataclass(frozen=True, eq=False)
class LastDigits:
    """A simulation, and what it gives with its sums a hair off.

    Args:
        simulated: The network.
        layers: Names of its layers.
        size: How far they are off, relatively: a draw of the normal distribution times this.
        batches: Examples.
        expected: Its outputs for them.
        compared: What is compared of the network's outputs for a batch.
    """

    simulated: nn.Module
    layers: Sequence[str]
    size: float
    batches: Sequence[Batch]
    expected: Sequence[Tensor]
    compared: Callable[[Any, Batch], Tensor]

    @torch.no_grad()
    def accepted_of_median(self) -> float:
        """Of the median example, where inputs are rounded while running.

        Numbers fall to either side of a tie between two codes. In a network with many layers some
        of every example do, in the simulation as in the runtime: the two differ as the simulation
        differs from itself with norms and biases a hair off.
        """
        draws = torch.Generator().manual_seed(0)
        moved = {
            name: p * (1 + self.size * torch.randn(p.shape, generator=draws).to(p))
            for name, p in self.simulated.named_parameters()
            if p.ndim == 1
        }
        found = self._moved(
            lambda batch: functional_call(self.simulated, moved, batch.args, dict(batch.kwargs))
        )
        return TIES * float(found.median())

    @torch.no_grad()
    def accepted_of_worst(self, spread: float) -> float:
        """Of the worst example, where no input is rounded.

        There are no ties, and a network moves by as much as it is disturbed: by every layer's
        outputs, a hair of their standard deviation off.

        Args:
            spread: Standard deviation of the network's outputs.
        """
        found = []
        for seed in range(NUM_DRAWS):
            with self._disturbed(seed):
                found.append(self._moved(self._outputs))
        return min(float(torch.cat(found).max()), MOST * spread)

    @torch.no_grad()
    def accepted_of_layers(self, batch: Batch, expected: Mapping[str, Tensor]) -> dict[str, float]:
        """The same of all that layers read and give.

        Args:
            batch: Examples.
            expected: ``traced`` of the simulation on them.

        Returns:
            The keys of ``expected`` with a difference: infinite where rows went elsewhere, as of
            an expert that is chosen by numbers.
        """
        found = dict.fromkeys(expected, 0.0)
        for seed in range(NUM_DRAWS):
            with self._disturbed(seed):
                moved = traced(self.simulated, lambda: self._outputs(batch))
            for key, before in expected.items():
                found[key] = max(found[key], _moved_by(before, moved.get(key)))
        return found

    def _disturbed(self, seed: int) -> AbstractContextManager[None]:
        draws = torch.Generator().manual_seed(seed)

        def disturb(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            if output.numel() < 2:  # an expert may be called with no rows
                return output
            noise = torch.randn(output.shape, generator=draws).to(output)
            return output + self.size * output.std() * noise

        modules = {id(m): m for m in map(self.simulated.get_submodule, self.layers)}
        return hooks([m.register_forward_hook(disturb) for m in modules.values()])

    def _moved(self, outputs: Callable[[Batch], Any]) -> Tensor:
        """``[N]`` largest difference of every example."""
        pairs = zip(self.batches, self.expected, strict=True)
        return torch.cat([largest(x, want - self.compared(outputs(x), x)) for x, want in pairs])

    def _outputs(self, batch: Batch) -> Any:
        return self.simulated(*batch.args, **batch.kwargs)


def largest(batch: Batch, differences: Tensor) -> Tensor:
    """``[N]`` of the examples of a batch, of which one that is whole is a single one."""
    rows = batch.as_examples(torch.atleast_1d(differences).abs())
    if not rows.numel():  # nothing was found in any of them
        return rows.new_zeros(len(rows))
    return rows.reshape(len(rows), -1).amax(1)


def _moved_by(expected: Tensor, moved: Tensor | None) -> float:
    if moved is None or expected.shape != moved.shape:
        return float("inf")
    return float((moved - expected).abs().amax()) if moved.numel() else 0.0
