"""Layers + device -> seconds, bytes, joules of every layer at every precision."""

from mpq.hardware_profiles.catalogue import device_names, load_device, profile_from_dict
from mpq.hardware_profiles.file_bytes import NO_TARGET, FilePrices
from mpq.hardware_profiles.linear import LINEAR_RESOURCES
from mpq.hardware_profiles.measured_table.conversion import Conversion
from mpq.hardware_profiles.measured_table.entry import Entry
from mpq.hardware_profiles.measured_table.overhead import FixedPart
from mpq.hardware_profiles.measured_table.profile import MeasuredTable
from mpq.hardware_profiles.measured_table.shape import Shape
from mpq.hardware_profiles.network_profile import NetworkProfile
from mpq.hardware_profiles.peak_ram import PEAK_RAM
from mpq.hardware_profiles.pricing import RESOURCES, Pricing, check_sum
from mpq.hardware_profiles.profile import Profile
from mpq.hardware_profiles.roofline.profile import Roofline
from mpq.network.workload import PHASES, Phase, Workload

__all__ = [
    "LINEAR_RESOURCES",
    "NO_TARGET",
    "PEAK_RAM",
    "PHASES",
    "RESOURCES",
    "Conversion",
    "Entry",
    "FilePrices",
    "FixedPart",
    "MeasuredTable",
    "NetworkProfile",
    "Phase",
    "Pricing",
    "Profile",
    "Roofline",
    "Shape",
    "Workload",
    "check_sum",
    "device_names",
    "load_device",
    "profile_from_dict",
]
