"""How far a simulation moves by itself where the last digits of its sums are other ones.

A runtime adds up in another order. What that changes grows from layer to layer: in a deep network
of few bits so much that float32 has only the first digits of the outputs, in torch as elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mpq.backends.layerwise import traced
from mpq.network.examples import Batch

TIMES: Final = 2.0
"""How many times as far as the simulation moves a runtime may be from it."""
NUM_DRAWS: Final = 3
"""Of which the largest counts where the worst example is judged, as that one varies much."""
MOST: Final = 0.01
"""Standard deviations of the outputs: what is never accepted of the worst example by this rule."""


@final
@dataclass(frozen=True, eq=False)
class LastDigits:
    """A simulation, and what it gives with norms and biases a hair off.

    Args:
        simulated: The network.
        size: How far they are off, relatively: a draw of the normal distribution times this.
        batches: Examples.
        expected: Its outputs for them.
        compared: What is compared of the network's outputs for a batch.
    """

    simulated: nn.Module
    size: float
    batches: Sequence[Batch]
    expected: Sequence[Tensor]
    compared: Callable[[Any, Batch], Tensor]

    @torch.no_grad()
    def accepted_of_median(self) -> float:
        """Of the median example, where inputs are rounded while running.

        Numbers fall to either side of a tie between two codes. In a network with many layers some
        of every example do, in the simulation as in the runtime.
        """
        return TIMES * float(self._moved(0).median())

    @torch.no_grad()
    def accepted_of_worst(self, spread: float) -> float:
        """Of the worst example, where no input is rounded.

        There are no ties, and a network moves by as much as it is disturbed: a wrong number that is
        larger than the last digits of sums moves the outputs further.

        Args:
            spread: Standard deviation of the outputs.
        """
        moved = torch.cat([self._moved(seed) for seed in range(NUM_DRAWS)])
        return min(TIMES * float(moved.max()), MOST * spread)

    @torch.no_grad()
    def accepted_of_layers(self, batch: Batch, expected: Mapping[str, Tensor]) -> dict[str, float]:
        """The same of all that layers read and give.

        Args:
            batch: Examples.
            expected: ``traced`` of the simulation on them.

        Returns:
            The keys of ``expected`` with a difference.
        """
        found = dict.fromkeys(expected, 0.0)
        for seed in range(NUM_DRAWS):
            for key, tensor in self._traced(batch, seed).items():
                apart = float((tensor - expected[key]).abs().amax()) if tensor.numel() else 0.0
                found[key] = max(found[key], TIMES * apart)
        return found

    def _traced(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        return traced(self.simulated, lambda: self._outputs(batch, self._disturbed(seed)))

    def _moved(self, seed: int) -> Tensor:
        """``[N]`` largest difference of every example."""
        disturbed = self._disturbed(seed)
        found = []
        for batch, want in zip(self.batches, self.expected, strict=True):
            got = self.compared(self._outputs(batch, disturbed), batch)
            found.append(largest(batch, want - got))
        return torch.cat(found)

    def _outputs(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Any:
        return functional_call(self.simulated, dict(parameters), batch.args, dict(batch.kwargs))

    def _disturbed(self, seed: int) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(seed)
        return {
            name: p * (1 + self.size * torch.randn(p.shape, generator=draws).to(p))
            for name, p in self.simulated.named_parameters()
            if p.ndim == 1
        }


def largest(batch: Batch, differences: Tensor) -> Tensor:
    """``[N]`` of the examples of a batch, of which one that is whole is a single one."""
    rows = batch.as_examples(differences.abs())
    return rows.reshape(len(rows), -1).amax(1)
