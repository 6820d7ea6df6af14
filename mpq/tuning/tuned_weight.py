"""A weight of codes and scales that are tuned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from mpq.network.modules import weight_of
from mpq.network.weight_layout import layout_of
from mpq.quantization.codes import Codes
from mpq.quantization.grid import integer_range, places
from mpq.quantization.numerics import Numerics
from mpq.quantization.rounding import scale_type_of
from mpq.quantization.second_scales import stored_scale
from mpq.quantization.stored import StoredWeight, code_type
from mpq.quantization.straight_through import straight_through
from mpq.quantization.tensor_format import Granularity, TensorFormat
from mpq.tuning.latent_codes import LatentCodes


def why_no_scale(tensor_format: TensorFormat) -> str:
    """Why a weight in a format has no scale that can be tuned; empty: it has."""
    number = tensor_format.number
    if tensor_format.is_exact:
        return "its weight stays as it came"
    if not number.bits:
        return "all its weights are 0"
    if not number.needs_scale:
        return f"{number.name} has no scale"
    if number.has_codebook:
        return f"{number.name} has levels, and no scale"
    if number.is_microscaling:
        kind = "powers of two" if number.block_scale == "e8m0" else "in fp8"
        return f"scales of {number.name} are {kind}"
    if tensor_format.has_tied_scales:
        return "its inputs differ in bits, and share a scale times a factor of each width"
    return ""


@final
class TunedWeight:
    r"""One weight ``[O, K]``, which one or more layers have, as it is tuned.

    .. math:: w = (c - z) \, s + b, \qquad s = \mathrm{stored}(s_0 e^t)

    ``t`` is learned for every scale: that keeps its sign, and moves by shares of itself. What it is
    stored in (fp16 for groups, as the numerics say) rounds it in every pass, straight through.
    Zero points stay, and so does the branch ``b`` where there is one. Step sizes are learned as by
    Esser et al. (2020), arXiv:1902.08153, from whom we depart: latent codes (``LatentCodes``) are
    in units of the step, so that they stay where it changes, and its gradient is the plain one of
    the product, without their term of the rounding error.

    Args:
        names: Layers that have the weight.
        modules: Their modules, in the quantized network.
        original: ``[O, K]`` the weight before it was rounded, float32 on the CPU.
        codes: What it was rounded to, in a format for which ``why_no_scale`` is empty.
        numerics: Says what scales are stored in.
        moves_codes: Whether codes move as well; those of integer formats do.
    """

    def __init__(
        self,
        names: Sequence[str],
        modules: Sequence[nn.Module],
        original: Tensor,
        codes: Codes,
        numerics: Numerics,
        moves_codes: bool,
    ) -> None:
        self.names, self._modules = tuple(names), tuple(modules)
        self.format = codes.tensor_format
        self._start = codes.stored(original)
        device = weight_of(modules[0]).device
        self._inputs, self._group = codes.num_inputs, self.format.group_size or codes.num_inputs
        is_one = self.format.granularity is Granularity.TENSOR
        self._scale = (codes.scale[:1, :1] if is_one else codes.scale).to(device)
        self._scale_type = scale_type_of(self.format, numerics)
        second = codes.second  # none of a weight with one scale
        self._second = None if second is None else second.mapped(lambda part: part.to(device))
        self.log_scale = torch.zeros_like(self._scale, requires_grad=True)
        self._points = self._spread(codes.zero_point.to(device).float())
        self._fixed = codes.codes[:, : codes.num_inputs].to(device)
        self._beside: Tensor | None = None
        if codes.branch is not None:
            self._beside = torch.from_numpy(codes.branch.numbers(codes.num_inputs)).to(device)
        self.latent: LatentCodes | None = None
        if moves_codes and self.format.is_scaled_integer:
            of_codes = original.to(device)
            of_codes = of_codes if self._beside is None else of_codes - self._beside
            lies = of_codes / self._spread(self._scale) + self._points
            self.latent = LatentCodes(self._fixed, lies, _ends(self.format, device))

    def scale(self) -> Tensor:
        """``[O, G]`` as stored, or ``[1, 1]`` of a weight with one; gradients straight through."""
        wanted = self._scale * self.log_scale.exp()
        return straight_through(
            wanted, stored_scale(wanted.detach(), self._scale_type, self._second)
        )

    def numbers(self) -> Tensor:
        """``[O, K]`` float32: the weight that is computed with."""
        codes = self._fixed if self.latent is None else self.latent.codes()
        found = (codes - self._points) * self._spread(self.scale())
        return found if self._beside is None else found + self._beside

    @torch.no_grad()
    def fill(self) -> None:
        """Puts the weight as it is now into its layers."""
        numbers = self.numbers()
        for module in self._modules:
            weight = weight_of(module)
            weight.copy_(layout_of(module).from_rows(numbers, tuple(weight.shape)))

    def backward(self) -> None:
        """Gradients of codes and scales from those that the layers' weights have; takes these."""
        gradient = torch.zeros_like(self._fixed)
        for module in self._modules:
            weight = weight_of(module)
            if weight.grad is not None:
                gradient += layout_of(module).to_rows(weight.grad).float()
            weight.grad = None
        torch.autograd.backward(self.numbers(), gradient)

    def after_step(self) -> None:
        """See ``LatentCodes.after_step``."""
        if self.latent is not None:
            self.latent.after_step()

    @property
    def leaves(self) -> list[nn.Parameter]:
        """The network's parameters whose gradients are asked for."""
        return [weight_of(module) for module in self._modules]

    def tensors(self) -> dict[str, Tensor]:
        """All that a run that goes on needs, by name."""
        of_codes = {} if self.latent is None else self.latent.tensors()
        return {"log_scale": self.log_scale.detach(), **of_codes}

    @torch.no_grad()
    def stored(self) -> StoredWeight:
        """The weight as it is now, as an assignment keeps it."""
        scale = self.scale().expand(len(self._fixed), -1)
        codes = self._fixed if self.latent is None else self.latent.codes()
        if self.format.table:
            codes = places(codes.cpu(), self.format.number)
        return replace(
            self._start,
            codes=codes.cpu().numpy().astype(code_type(self.format)),
            scale=scale.contiguous().cpu().numpy(),
        )

    def _spread(self, by_group: Tensor) -> Tensor:
        """``[O, G]`` as something that broadcasts with ``[O, K]``."""
        if by_group.shape[1] == 1:
            return by_group
        return by_group.repeat_interleave(self._group, dim=1)[:, : self._inputs]


def _ends(tensor_format: TensorFormat, device: torch.device) -> tuple[Tensor, Tensor]:
    """Smallest and largest code of every number, or of all; broadcasts with ``[O, K]``."""
    by_width = [integer_range(x.number, x.symmetric) for x in tensor_format.by_channel]
    low, high = torch.tensor(by_width, dtype=torch.float32, device=device).T  # [F]
    if tensor_format.channels is None:
        return low, high
    cells = torch.from_numpy(tensor_format.channels.cells).to(device)
    return low[cells], high[cells]
