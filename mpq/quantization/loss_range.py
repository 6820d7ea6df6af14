"""Ranges of inputs from the loss: squared errors, each times the loss's squared gradient there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from mpq.errors import InputError
from mpq.quantization.number_format import NumberFormat
from mpq.quantization.range_method import RangeMethod
from mpq.quantization.range_search import RangeSearch

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class LossWeighted(RangeMethod):
    r"""The range that costs the loss least, if errors of different numbers do not interact.

    .. math:: \min_r \sum_i \left( (1 - \gamma) + \gamma \frac{g_i^2}{\overline{g^2}} \right)
        (Q_r(x_i) - x_i)^2

    over shrunken copies :math:`r` of the full range, for numbers :math:`x_i` of a layer's input
    and the gradients :math:`g_i` there, through this layer, of the output sketch's softened probe.
    With :math:`\gamma = 1` it is the diagonal of the loss's second-order change by the rounding of
    the input, summed over examples, as PTQ4ViT weighs errors of outputs (Yuan et al. 2021,
    arXiv:2111.12293). Departs from it in weighing the errors of the inputs that are rounded.

    Needs a forward and a backward pass over the calibration examples, and of each batch as many
    gradients as numbers. Layers that no gradient reaches count all numbers alike, and so does
    whoever knows no gradients.

    Args:
        num_shrinks: Ranges that are tried, from the full one down to a fifth of it, in equal steps.
        guidance: Share of the weighted errors, :math:`\gamma`, from 0 to 1.
        trial: Whether it is used for the formats alone in which a quarter of the calibration
            examples, which it was not found with, lose less by it than by ``mse``, beyond chance.
        num_halvings: How often both neighbours of the best are tried then, half as far away each
            time.

    Raises:
        InputError: If there is no range to try, or the guidance is no share.
    """

    name: ClassVar[str] = "loss"
    summary: ClassVar[str] = "of inputs: squared errors times the loss's squared gradients there"
    reads_gradients: ClassVar[bool] = True

    num_shrinks: int = 16
    guidance: float = 1.0
    trial: bool = True
    num_halvings: int = 3

    def __post_init__(self) -> None:
        if self.num_shrinks < 1 or self.num_halvings < 0:
            raise InputError(
                f"loss tries at least 1 range; got {self.num_shrinks}, and {self.num_halvings} "
                "halvings"
            )
        if not 0 <= self.guidance <= 1:
            raise InputError(f"loss:guidance is a share from 0 to 1; got {self.guidance}")

    def ends(
        self, rows: "Tensor", number: NumberFormat, symmetric: bool
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.ends``: where no gradients are known all numbers count alike."""
        import torch

        return self.weighted_ends(rows, torch.zeros_like(rows), number, symmetric)

    def weighted_ends(
        self, rows: "Tensor", weights: "Tensor", number: NumberFormat, symmetric: bool
    ) -> tuple["Tensor", "Tensor"]:
        """See ``RangeMethod.weighted_ends``; a row without weights above 0 counts all alike."""
        import torch

        rows, weights = rows.float(), weights.float()
        mean = weights.double().mean(dim=1, keepdim=True)
        relative = (weights / mean).float()
        guided = torch.where(mean > 0, 1 - self.guidance + self.guidance * relative, 1.0)

        search = RangeSearch(rows, number, symmetric, weights=guided)
        return search.ends(self.num_shrinks, self.num_halvings)
