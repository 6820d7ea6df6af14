"""What a convolution's kernel meets, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

from torch import Tensor
from torch.nn import functional as F


@final
@dataclass(frozen=True)
class Geometry:
    """How a convolution slides."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int
    padding_mode: str
    is_transposed: bool
    output_padding: tuple[int, ...]

    @classmethod
    def of(cls, layer_module: Any) -> Self:
        """Of a ``ConvNd`` or ``ConvTransposeNd``; torch types none of these attributes."""
        kernel, dilation = tuple(layer_module.kernel_size), tuple(layer_module.dilation)
        if layer_module.padding == "same":
            both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            # Torch puts the odd one at the end.
            padding = [(b // 2, b - b // 2) for b in both]
        else:
            one = (0,) * len(kernel) if layer_module.padding == "valid" else layer_module.padding
            padding = [(p, p) for p in one]
        is_transposed = bool(layer_module.transposed)
        mode = "constant" if layer_module.padding_mode == "zeros" else layer_module.padding_mode
        stride = tuple(layer_module.stride)
        output_padding = tuple(layer_module.output_padding)
        return cls(
            kernel, stride, dilation, tuple(padding), layer_module.groups, mode, is_transposed,
            output_padding,
        )  # fmt: skip

    def padded(self, x: Tensor) -> Tensor:
        """``[N, C, ...]`` with its padding, as a convolution slides over it."""
        # F.pad begins with the last axis.
        sides = [side for pair in reversed(self.padding) for side in pair]
        return F.pad(x, sides, mode=self.padding_mode)


def windows(x: Tensor, geometry: Geometry, positions: Sequence[int]) -> Tensor:
    """``[N, C, *kernel, *positions]``: what each weight meets at each position, without a copy."""
    kernel, stride, dilation = geometry.kernel, geometry.stride, geometry.dilation
    steps = x.contiguous().stride()
    along_kernel = [step * d for step, d in zip(steps[2:], dilation, strict=True)]
    along_positions = [step * s for step, s in zip(steps[2:], stride, strict=True)]
    # Windows overlap in memory, so that they may be read and never written.
    size = (*x.shape[:2], *kernel, *positions)
    return x.contiguous().as_strided(size, (*steps[:2], *along_kernel, *along_positions))
