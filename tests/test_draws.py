"""What a test draws does not depend on which other tests are collected, or ran before.

Hypothesis draws from a test's own name and code (``derandomize``), keeps no examples of earlier
runs and reads no constants of other modules; the global generators begin every test alike.
"""

import random
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings
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


def test_draws_know_nothing_of_earlier_runs() -> None:
    """No database of examples, and no random seed."""
    assert settings().database is None
    assert settings().derandomize


AT_IMPORT = torch.rand(3)


@pytest.mark.parametrize("run", ["first", "second"])
def test_the_global_generators_begin_alike(run: str) -> None:
    """In every test, whatever the one before it drew."""
    drawn = torch.rand(3), np.random.rand(3), random.random()

    own = torch.Generator().manual_seed(0)
    assert torch.equal(drawn[0], torch.rand(3, generator=own)), run
    assert np.array_equal(drawn[1], np.random.RandomState(0).rand(3))
    assert drawn[2] == random.Random(0).random()


def test_the_generators_begin_alike_when_a_module_is_imported() -> None:
    """Networks that are made beside the tests are the same, too."""
    assert torch.equal(AT_IMPORT, torch.rand(3, generator=torch.Generator().manual_seed(0)))
