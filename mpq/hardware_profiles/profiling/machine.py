"""What this machine is, as far as it tells."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_TELLING = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "avx512_bf16",
    "asimddp",
    "i8mm",
)
"""Processor features that decide how fast integers are."""


def describe_machine(packages: tuple[str, ...]) -> dict[str, str]:
    """Processor, system and versions, for a profile; nothing that names the machine itself."""
    lines = _cpuinfo()
    # `flags` on x86, `Features` on ARM.
    flags = next((v.split() for k, v in lines if k in ("flags", "Features")), [])
    found = {
        # Not every architecture's kernel gives a model name.
        "processor": next((v for k, v in lines if k == "model name"), platform.machine()),
        "features": ", ".join(flag for flag in _TELLING if flag in flags) or "unknown",
        "processors": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return found | {name: _version(name) for name in packages}


def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    # Linux alone has this file: elsewhere there is what `platform` says.
    if not path.exists():
        return []
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
