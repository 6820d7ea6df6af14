"""Prices of a network's layers: on a device, or without one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from mpq.budget import total
from mpq.cost_table import CostTable
from mpq.errors import InputError, UnknownNameError
from mpq.hardware_profiles.linear import LINEAR_RESOURCES, linear_cost
from mpq.hardware_profiles.profile import Profile
from mpq.hardware_profiles.workload import Workload
from mpq.layer import Layer
from mpq.precision import Precision

DEVICE_RESOURCES = ("latency", "energy")
"""What only a device prices."""
RESOURCES = (*DEVICE_RESOURCES, *LINEAR_RESOURCES)
"""Everything that a budget can limit."""


@final
@dataclass(frozen=True)
class Pricing:
    """What these layers cost, in any resource.

    Args:
        layers: ``L`` layers.
        profile: The device, or ``None``: then only resources that need none.
        workload: What is run at once, for latency and energy.
    """

    layers: tuple[Layer, ...]
    profile: Profile | None = None
    workload: Workload = field(default_factory=Workload)

    @property
    def resources(self) -> tuple[str, ...]:
        """Resources that can be priced."""
        return (*(self.profile.resources if self.profile else ()), *LINEAR_RESOURCES)

    def table(self, resource: str, choices: Sequence[Precision]) -> CostTable:
        """``[L, B]`` cost of a resource; ``nan`` where the device cannot run a layer.

        Raises:
            InputError: If the resource needs a device and there is none.
            UnknownNameError: If there is no such resource.
        """
        check_resource(resource, self.profile is not None)
        if resource in LINEAR_RESOURCES:
            return self._runnable(linear_cost(resource, self.layers, choices))
        assert self.profile is not None
        return self.profile.cost(resource, self.layers, choices, self.workload)

    def _runnable(self, table: CostTable) -> CostTable:
        """With ``nan`` where the device cannot run a layer."""
        if self.profile is None:
            return table
        can_run = self.profile.can_run
        able = [[can_run(layer, choice) for choice in table.precisions] for layer in self.layers]
        return replace(table, values=np.where(able, table.values, np.nan))

    def amount(self, resource: str, precisions: Mapping[str, Precision]) -> float:
        """What an assignment costs, in the resource's unit; ``nan`` where the device cannot run it.

        Resources that need no device are counted also where the device cannot run it.
        """
        choices = tuple(dict.fromkeys(precisions.values()))
        if resource in LINEAR_RESOURCES:
            table = linear_cost(resource, self.layers, choices)
        else:
            table = self.table(resource, choices)
        columns = [choices.index(precisions[layer.name]) for layer in self.layers]
        return total(table, np.array(columns, dtype=np.intp))


def check_resource(resource: str, has_device: bool) -> None:
    """Refuses a resource that cannot be priced.

    Raises:
        InputError: If the resource needs a device and there is none.
        UnknownNameError: If there is no such resource.
    """
    if resource not in RESOURCES:
        raise UnknownNameError("resource", resource, RESOURCES)
    if resource in DEVICE_RESOURCES and not has_device:
        raise InputError(f"{resource} needs a device: give one (`mpq devices` lists them)")
