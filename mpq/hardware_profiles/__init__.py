"""Layers + device -> seconds, bytes, joules of every layer at every precision."""

from mpq.hardware_profiles.linear import LINEAR_RESOURCES
from mpq.hardware_profiles.pricing import Pricing
from mpq.hardware_profiles.profile import Profile, device_names, load_device

RESOURCES = ("latency", "energy", *LINEAR_RESOURCES)
"""Everything that a budget can limit; the first two need a device."""

__all__ = [
    "LINEAR_RESOURCES",
    "RESOURCES",
    "Pricing",
    "Profile",
    "device_names",
    "load_device",
]
