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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import build_meta

Settings = dict[str, str | list[str] | None] | None
_EXTRA = "DIST_EXTRA_CONFIG"


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what else must be installed to build a wheel: nothing beyond pyproject.toml."""
    with _working_folders_elsewhere():
        return build_meta.get_requires_for_build_wheel(config_settings)


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return what else must be installed for ``pip install -e .``."""
    with _working_folders_elsewhere():
        return build_meta.get_requires_for_build_editable(config_settings)


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Return what else must be installed to build a source distribution."""
    with _working_folders_elsewhere():
        return build_meta.get_requires_for_build_sdist(config_settings)


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    """Write the metadata of the wheel; return the name of its folder."""
    with _working_folders_elsewhere():
        return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    """Write the metadata of the editable wheel; return the name of its folder."""
    with _working_folders_elsewhere():
        return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel; return its file name."""
    with _working_folders_elsewhere():
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel that points into this clone; return its file name."""
    with _working_folders_elsewhere():
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Build the source distribution; return its file name."""
    with _working_folders_elsewhere():
        return build_meta.build_sdist(sdist_directory, config_settings)


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
