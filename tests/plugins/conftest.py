"""The toys, installed once."""

from pathlib import Path

import pytest

from tests.plugins.toy_site import ToySite


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, root: Path) -> ToySite:
    """A folder with the toys beside mpq."""
    return ToySite.made(tmp_path_factory.mktemp("site"), root)
