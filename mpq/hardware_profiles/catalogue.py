"""The devices that ship with mpq, and profiles from files."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

from mpq._support import schema_versions
from mpq._support.json_object import parsed_json, quoted, read_text
from mpq.errors import FileFormatError, InputError, UnknownNameError
from mpq.hardware_profiles.measured_table.profile import MeasuredTable
from mpq.hardware_profiles.network_profile import NetworkProfile
from mpq.hardware_profiles.profile import Profile
from mpq.hardware_profiles.roofline.profile import Roofline
from mpq.quantization.formats import NUMBER_FORMATS

MODELS: Final[Mapping[str, Callable[[Any], Profile]]] = {
    "roofline": Roofline.from_dict,
    "measured": MeasuredTable.from_dict,
    "network": NetworkProfile.from_dict,
}
"""What a profile's ``model`` key may say, and what reads such a profile."""


def device_names() -> tuple[str, ...]:
    """Devices that ship with mpq."""
    folder = resources.files("mpq.hardware_profiles").joinpath("devices")
    names = (entry.name for entry in folder.iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in names if name.endswith(".json")))


def load_device(name: str) -> Profile:
    """A device by name, or from ``path/to/device.json`` or ``path/to/table.csv``.

    Raises:
        UnknownNameError: If there is no such device.
        FileFormatError: If the file cannot be read, is no JSON or CSV, or is no profile; names the
            key, or line and column.
    """
    # A name that ends so is a path: no device that ships is called like a file.
    if name.endswith((".json", ".csv")):
        return _load(Path(name))
    if name not in device_names():
        raise UnknownNameError("device", name, device_names())
    file = resources.files("mpq.hardware_profiles").joinpath("devices", f"{name}.json")
    return profile_from_dict(parsed_json(file.read_text(encoding="utf-8")))


def profile_from_dict(data: Any) -> Profile:
    """A profile from its JSON object.

    Raises:
        FileFormatError: If it does not fit the schema of its model; names the key.
    """
    # Imported here: the names of devices can be listed without jsonschema.
    from mpq._support.schema import validate

    # Before the schema is checked: a newer file would fail there by some key, and not say why.
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > schema_versions.DEVICE_PROFILE:
        raise FileFormatError(
            f"profile of schema version {version}; this mpq reads version "
            f"{schema_versions.DEVICE_PROFILE}: update mpq"
        )
    # Without the key, the roofline's schema says below that it is missing.
    model = data.get("model", "roofline") if isinstance(data, dict) else "roofline"
    # By type first: a list cannot be looked up.
    if not isinstance(model, str) or model not in MODELS:
        raise FileFormatError(
            f"a profile's model is one of {', '.join(MODELS)}; got {quoted(model)}"
        )
    validate(data, _schema(model), "profile")
    return MODELS[model](data)


def _load(path: Path) -> Profile:
    text = read_text(path)
    try:
        # A table of measurements says everything but the name, which is the file's.
        if path.suffix == ".csv":
            return MeasuredTable.from_csv(text, device_name(path))
        return profile_from_dict(parsed_json(text))
    # FileFormatError is one too: either gets the name of the file.
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from error


def device_name(path: Path) -> str:
    """What a device is called that a file describes without saying its name.

    >>> device_name(Path("tables/My board (v2).csv"))
    'my-board-v2'
    """
    # What the schemas allow in a name, less what may not begin one.
    words = re.findall(r"[a-z0-9_.]+", path.stem.lower())
    return "-".join(words).lstrip("_.") or "device"


# Number formats of other packages are looked up for it, by reading what is installed.
@cache
def _schema(model: str) -> Any:
    from mpq._support.schema import read_schema

    return read_schema(
        "mpq.hardware_profiles", f"{model}.schema.json", number_format=NUMBER_FORMATS
    )
