"""Write constraints that hold every dependency at the lower bound that setup.cfg promises.

    python scripts/oldest.py > oldest.txt
    python scripts/oldest.py onnx openvino > oldest.txt
    pip install -c oldest.txt -e '.[test,onnx,openvino]'

Takes the extras whose requirements count beside those of the package itself. Where two of them ask
for the same project, the higher bound counts, as both must hold. What has no lower bound is left
out. The tools of the extra ``test`` are best not named: a user does not run them.
"""

import configparser
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

SETTINGS = Path(__file__).resolve().parents[1] / "setup.cfg"


def main() -> None:
    """Print a constraint a line, sorted by name."""
    for name, version in sorted(lower_bounds(SETTINGS, sys.argv[1:]).items()):
        print(f"{name}=={version}")


def lower_bounds(settings: Path, extras: list[str]) -> dict[str, Version]:
    """The highest lower bound of every project that is required.

    Raises:
        SystemExit: An extra that setup.cfg does not have.
    """
    config = configparser.ConfigParser()
    config.read(settings, encoding="utf-8")
    known = config["options.extras_require"]
    unknown = sorted(set(extras) - set(known))
    if unknown:
        sys.exit(f"expected extras of setup.cfg ({', '.join(known)}), got {', '.join(unknown)}")
    texts = [config["options"]["install_requires"], *(known[extra] for extra in extras)]
    bounds: dict[str, Version] = {}
    for line in "\n".join(texts).split("\n"):
        for name, version in bound_of(line):
            bounds[name] = max(version, bounds.get(name, version))
    return bounds


def bound_of(line: str) -> list[tuple[str, Version]]:
    """Name and lower bound of the requirement on a line; nothing where there is none."""
    text = line.partition(" #")[0].strip()
    if not text or text.startswith("#"):
        return []
    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return []
    name = canonicalize_name(requirement.name)
    return [
        (name, Version(s.version))
        for s in requirement.specifier
        if s.operator in (">=", "==", "~=")
    ]


if __name__ == "__main__":
    main()
