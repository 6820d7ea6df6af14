"""What is exported as C is compiled: without a compiler there is nothing to test."""

import pytest

from mpq.backends.c.compiler import compiler
from mpq.errors import MissingDependencyError


@pytest.fixture(autouse=True)
def c_compiler() -> None:
    """Skips where there is none."""
    try:
        compiler()
    except MissingDependencyError as error:
        pytest.skip(str(error))
