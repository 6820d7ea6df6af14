"""Codes that move while a network is tuned, and those that swing to and fro."""

from typing import Final, final

import torch
from torch import Tensor

from mpq.quantization.straight_through import straight_through

INSIDE: Final = 0.49
"""How far from its code, in codes, a latent one starts at most: it rounds to it."""
MOMENTUM: Final = 0.01
"""Of the moving means that know oscillations (Nagel et al. 2022, table 3)."""
OFTEN: Final = 0.015
"""A weight is frozen where more than this share of steps turn it back: at the second turn within
some 60 steps."""


@final
class LatentCodes:
    r"""Codes ``[O, K]`` of an integer format as real numbers, which are rounded in every pass.

    .. math:: c = \mathrm{round}(u), \qquad \partial c / \partial u := 1

    They start where the weight itself lies on its grid, as far as that rounds to the code that
    the weight has: what is tuned is the rounding's answer, and weights between codes turn first.

    A weight whose code turns back again and again finds no rest between two codes. It is frozen at
    the mean of its codes so far, rounded: iterative freezing of Nagel et al. (2022),
    arXiv:2203.11086. We depart from it in a fixed threshold, as our runs have tens to hundreds of
    steps.

    Args:
        codes: ``[O, K]`` float32, whole numbers.
        places: ``[O, K]`` the weight in units of its codes.
        ends: Smallest and largest code, of each number where they differ in bits; both broadcast
            with ``[O, K]``.
    """

    def __init__(self, codes: Tensor, places: Tensor, ends: tuple[Tensor, Tensor]) -> None:
        self._ends = ends
        start = torch.minimum(torch.maximum(places, codes - INSIDE), codes + INSIDE)
        self.latent = start.clamp_(*self._ends).requires_grad_()
        self.turns = torch.zeros_like(codes)  # moving mean of how often
        self.mean = codes.clone()  # moving mean of the codes
        self.before = codes.clone()
        self.direction = torch.zeros_like(codes, dtype=torch.int8)
        self.is_frozen = torch.zeros_like(codes, dtype=torch.bool)

    def codes(self) -> Tensor:
        """``[O, K]`` float32, with straight-through gradients."""
        return straight_through(self.latent, self.latent.detach().round())

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps latent codes in the format's range, and freezes those that oscillate."""
        # Beyond the ends a latent code would be lost: its gradient says nothing there.
        self.latent.clamp_(*self._ends)
        self.latent[self.is_frozen] = self.before[self.is_frozen]
        codes = self.latent.round()
        moved = (codes - self.before).sign().to(torch.int8)
        turned = (moved * self.direction) < 0
        self.turns.lerp_(turned.float(), MOMENTUM)
        self.mean.lerp_(codes, MOMENTUM)
        self.direction = torch.where(moved != 0, moved, self.direction)
        frozen = (self.turns > OFTEN) & ~self.is_frozen
        codes[frozen] = self.mean.round().clamp(*self._ends)[frozen]
        self.latent[frozen] = codes[frozen]
        self.is_frozen |= frozen
        self.before = codes

    def tensors(self) -> dict[str, Tensor]:
        """All that a run that goes on needs, by name."""
        return {
            "latent": self.latent.detach(),
            "turns": self.turns,
            "mean": self.mean,
            "before": self.before,
            "direction": self.direction,
            "is_frozen": self.is_frozen,
        }
