"""Writes requirements/tested.txt: the exact versions of the environment that this runs in.

    python scripts/freeze_tested.py > requirements/tested.txt

Run it with the Python of an environment in which the whole suite has just passed. The file is for
``pip install --constraint``: an installation made with it is the one that was tested.
"""

import re
from importlib.metadata import distributions

_NOT_OURS = {"mpq", "pip", "setuptools", "wheel"}
_HEADER = """# The versions of a full green run, for `pip install --constraint`.
# Made by `python scripts/freeze_tested.py > requirements/tested.txt`; not edited by hand."""


def normalized(name: str) -> str:
    """A project's name as PEP 503 spells it.

    >>> normalized("Jinja2"), normalized("typing_extensions")
    ('jinja2', 'typing-extensions')
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version: str) -> str:
    """A version without its local part: of ``2.13.0+cpu``, what an index has for everybody.

    >>> public("2.13.0+cpu")
    '2.13.0'
    """
    return version.partition("+")[0]


def frozen() -> list[str]:
    """``name==version`` of all that is installed, sorted."""
    found = {normalized(d.metadata["Name"]): public(d.version) for d in distributions()}
    return [f"{name}=={found[name]}" for name in sorted(found.keys() - _NOT_OURS)]


if __name__ == "__main__":
    print("\n".join([_HEADER, *frozen()]))
