"""Layers + device -> seconds, bytes, joules of every layer at every precision."""

from mpq.hardware_profiles.catalogue import device_names, load_device, profile_from_dict
from mpq.hardware_profiles.estimated import Roofline
from mpq.hardware_profiles.linear import LINEAR_RESOURCES
from mpq.hardware_profiles.pricing import RESOURCES, Pricing, check_resource
from mpq.hardware_profiles.profile import Profile
from mpq.hardware_profiles.workload import Workload

__all__ = [
    "LINEAR_RESOURCES",
    "RESOURCES",
    "Pricing",
    "Profile",
    "Roofline",
    "Workload",
    "check_resource",
    "device_names",
    "load_device",
    "profile_from_dict",
]
