"""Layers + device -> seconds, bytes, joules of every layer at every precision."""

from mpq.hardware_profiles.linear import LINEAR_RESOURCES
from mpq.hardware_profiles.pricing import RESOURCES, Pricing, check_resource
from mpq.hardware_profiles.profile import Profile, device_names, load_device

__all__ = [
    "LINEAR_RESOURCES",
    "RESOURCES",
    "Pricing",
    "Profile",
    "check_resource",
    "device_names",
    "load_device",
]
