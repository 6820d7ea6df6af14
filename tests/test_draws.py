"""What hypothesis draws does not depend on which other tests are collected."""

import sys
from types import ModuleType

from hypothesis.internal.conjecture import providers


def test_draws_know_nothing_of_the_modules_that_are_loaded() -> None:
    """A new local module full of constants adds none to those that draws are made from."""
    module = ModuleType("mpq_full_of_constants")
    module.__file__ = __file__
    sys.modules[module.__name__] = module
    try:
        found = providers._get_local_constants()
    finally:
        del sys.modules[module.__name__]

    assert len(found) == 0
