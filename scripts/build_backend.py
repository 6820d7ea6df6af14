"""setuptools as the build backend, with its working folders outside the source tree.

By itself setuptools leaves ``build/`` and ``mpq.egg-info/`` in the clone in which ``pip install .``
is run. What lies in ``build/`` from an older version even ends up in the next wheel. Neither place
can be named in setup.cfg, which would need one absolute path for every machine; but setuptools
reads one more configuration file, that which the environment variable ``DIST_EXTRA_CONFIG`` names.
So every hook runs with such a file, which names a temporary folder. pyproject.toml names this
module; the hooks are those of PEP 517 and PEP 660.
"""

import configparser
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from setuptools import build_meta

P = ParamSpec("P")
T = TypeVar("T")
_EXTRA = "DIST_EXTRA_CONFIG"


def _elsewhere(hook: Callable[P, T]) -> Callable[P, T]:
    """The same hook, which leaves nothing in the source tree."""

    @wraps(hook)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        with _working_folders_elsewhere():
            return hook(*arguments, **options)

    return run


@contextmanager
def _working_folders_elsewhere() -> Iterator[None]:
    """Let setuptools work in a temporary folder, which is gone afterwards."""
    before = os.environ.get(_EXTRA)
    with tempfile.TemporaryDirectory(prefix="mpq-build-") as folder:
        os.environ[_EXTRA] = str(_extra_config(Path(folder), before))
        try:
            yield
        finally:
            os.environ.pop(_EXTRA)
            if before is not None:
                os.environ[_EXTRA] = before


def _extra_config(folder: Path, before: str | None) -> Path:
    """Write the settings, on top of those of the file that the user had named already."""
    config = configparser.RawConfigParser()
    if before is not None:
        config.read(before, encoding="utf-8")
    config.read_dict(
        {
            "build": {"build_base": str(folder / "build")},
            "egg_info": {"egg_base": str(folder)},
        }
    )
    path = folder / "extra.cfg"
    with path.open("w", encoding="utf-8") as file:
        config.write(file)
    return path


get_requires_for_build_wheel = _elsewhere(build_meta.get_requires_for_build_wheel)
get_requires_for_build_editable = _elsewhere(build_meta.get_requires_for_build_editable)
get_requires_for_build_sdist = _elsewhere(build_meta.get_requires_for_build_sdist)
prepare_metadata_for_build_wheel = _elsewhere(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _elsewhere(build_meta.prepare_metadata_for_build_editable)
build_wheel = _elsewhere(build_meta.build_wheel)
build_editable = _elsewhere(build_meta.build_editable)
build_sdist = _elsewhere(build_meta.build_sdist)
