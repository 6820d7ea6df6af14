"""Prices of a network's layers: on a device, or without one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from mpq.cost_table import CostTable
from mpq.errors import InputError
from mpq.hardware_profiles.linear import LINEAR_RESOURCES, linear_cost
from mpq.hardware_profiles.profile import Profile
from mpq.layer import Layer
from mpq.precision import Precision


@final
@dataclass(frozen=True)
class Pricing:
    """What these layers cost, in any resource.

    Args:
        layers: ``L`` layers.
        profile: The device, or ``None``: then only resources that need none.
        batch_size: Examples that are run at once, for latency and energy.
    """

    layers: tuple[Layer, ...]
    profile: Profile | None = None
    batch_size: int = 1

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources that can be priced."""
        of_device = () if self.profile is None else ("latency", "energy")
        return (*of_device, *LINEAR_RESOURCES)

    def table(self, resource: str, choices: Sequence[Precision]) -> CostTable:
        """``[L, B]`` cost of a resource; ``nan`` where the device cannot run a layer.

        Raises:
            InputError: If the resource needs a device and there is none.
            UnknownNameError: If there is no such resource.
        """
        if self.profile is not None:
            return self.profile.cost(resource, self.layers, choices, self.batch_size)
        if resource in ("latency", "energy"):
            raise InputError(f"{resource} needs a device: give one (`mpq devices` lists them)")
        return linear_cost(resource, self.layers, choices)
