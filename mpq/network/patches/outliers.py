"""Two classes of patches: those whose input has outliers run in a network of more bits."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, final

import torch
from torch import Tensor, nn

from mpq.errors import InputError
from mpq.network.examples import Batch, Calibration
from mpq.network.modules import device_of
from mpq.network.patches.chain import Chain
from mpq.network.patches.plan import PatchPlan
from mpq.network.patches.recording import Recorded
from mpq.network.patches.windows import patches_of, whole_channels


@final
@dataclass(frozen=True, eq=False)
class OutlierPatches:
    """Which patches have outliers, and the network that they run in.

    A Gaussian is fitted to all numbers of the input; one that is more than ``num_deviations``
    standard deviations from the mean is an outlier, and every patch that reads one of an example
    runs in the other network, up to the cut. So QuantMCU (Tao et al. 2024, arXiv:2401.13714) keeps
    feature maps of such patches at 8 bits; how far from the mean its outliers are, we do not know.

    Args:
        network: The same network in more bits, with the same names of its modules.
        mean: Of the input.
        deviation: Its standard deviation, above 0.
        num_deviations: Above 0.

    Raises:
        InputError: If a number makes no sense.
    """

    network: nn.Module
    mean: float
    deviation: float
    num_deviations: float = 3.0

    def __post_init__(self) -> None:
        if not (self.deviation > 0 and self.num_deviations > 0):
            raise InputError(
                "outliers need inputs that differ, and a number of standard deviations above 0; "
                f"got {self.num_deviations} of {self.deviation}"
            )

    @classmethod
    def fitted(cls, network: nn.Module, data: Any, num_deviations: float = 3.0) -> "OutlierPatches":
        """The classes with a Gaussian of all numbers that examples give the network.

        Args:
            network: See above.
            data: Examples, as ``Calibration`` takes them.
            num_deviations: See above.
        """
        count, total, squares = 0, 0.0, 0.0
        for batch in Calibration.of(data):
            for x in batch.tensors[:1]:
                numbers = x.double()
                count += numbers.numel()
                total += float(numbers.sum())
                squares += float(numbers.square().sum())
        mean = total / count
        return cls(network, mean, sqrt(max(squares / count - mean**2, 0.0)), num_deviations)

    def has_outliers(self, window: Tensor) -> Tensor:
        """``[N]``: which examples have one in a window ``[N, C, h, w]`` of the input."""
        distances = (window.double() - self.mean).abs().flatten(1)
        return (distances > self.num_deviations * self.deviation).any(1)


def outlier_share(model: nn.Module, data: Any, plan: PatchPlan, num_deviations: float) -> float:
    """Share of the patches of all examples that have outliers, see ``OutlierPatches``.

    Raises:
        InputError: If all inputs are the same number, or ``num_deviations`` is not above 0.
        DataError: If the data is no batches.
        ModelError: See ``patch_classes``.
        UnknownNameError: See ``patch_classes``.
    """
    outliers = OutlierPatches.fitted(model, data, num_deviations)
    found = [patch_classes(model, batch, plan, outliers) for batch in Calibration.of(data)]
    return float(torch.cat(found).double().mean())


def patch_classes(model: nn.Module, data: Any, plan: PatchPlan, outliers: OutlierPatches) -> Tensor:
    """``[N, P, P]``: which patches of which examples have outliers in what they read of the input.

    Args:
        model: In evaluation mode; left as found.
        data: One batch, as ``Batch.of`` takes it; left as found.
        plan: Of this network, at images of this size.
        outliers: What an outlier is.

    Raises:
        DataError: If the data is no batch.
        ModelError: If the network cannot be searched, does not run on such inputs, cannot be cut
            where the plan cuts, or images have another size.
        UnknownNameError: If it has no operation of the plan's cut.
    """
    chain = Chain.of(Recorded.of(model, data))
    # The data itself: what was recorded ran on copies, which a network may have written into.
    cut, (x, *_) = chain.position(plan.cut), Batch.of(data).to(device_of(model)).tensors
    recorded = chain.recorded
    plan.check_shape(recorded.images[recorded.operations[cut].writes[0]].shape)
    found = []
    for patch in patches_of((plan.shape[1], plan.shape[2]), plan.num_patches):
        read = x[whole_channels(chain.windows(cut, patch)[0])]
        found.append(outliers.has_outliers(read))
    return torch.stack(found, 1).reshape(-1, plan.num_patches, plan.num_patches)
