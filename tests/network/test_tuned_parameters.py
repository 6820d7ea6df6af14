"""Vectors that tuning changed: their file, and the model that they fit."""

from collections.abc import Callable
from copy import deepcopy
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from torch import nn

from mpq.errors import FileFormatError, MismatchError
from mpq.network.tuned_parameters import TunedParameter, TunedParameters
from mpq.network.with_tuned import with_tuned


def tuned(model: nn.Module) -> TunedParameters:
    bias = model.get_parameter("0.bias").detach().float().numpy().copy()
    return TunedParameters({"0.bias": TunedParameter(bias, 2 * bias)})


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()


def test_the_file_holds_all(model: nn.Module) -> None:
    """Written and read it is equal, and says so."""
    one = tuned(model)

    again = TunedParameters.from_content(one.content, one.to_dict())

    assert again == one
    assert hash(again) == hash(one)
    assert again != TunedParameters({"1.bias": one.by_name["0.bias"]})
    assert np.array_equal(again.by_name["0.bias"].tuned, one.by_name["0.bias"].tuned)


def test_a_model_gets_other_numbers_and_the_users_stays(model: nn.Module) -> None:
    """All else is the user's own memory."""
    before = model.get_parameter("0.bias").detach().clone()

    changed = with_tuned(model, tuned(model))

    assert torch.equal(changed.get_parameter("0.bias"), 2 * before)
    assert torch.equal(model.get_parameter("0.bias"), before)
    shared = changed.get_parameter("0.weight")
    assert shared.data_ptr() == model.get_parameter("0.weight").data_ptr()


def test_a_wrapper_changes_no_name(model: nn.Module) -> None:
    """Names are those without it."""
    wrapped = nn.DataParallel(model)

    changed = with_tuned(wrapped, tuned(model))

    assert torch.equal(changed.get_parameter("0.bias"), 2 * model.get_parameter("0.bias"))


def test_coarser_numbers_are_the_same_checkpoint(model: nn.Module) -> None:
    """A model in bfloat16 differs by its rounding, and gets what is tuned in its own dtype."""
    coarse = deepcopy(model).bfloat16()

    bias = with_tuned(coarse, tuned(model)).get_parameter("0.bias")

    assert bias.dtype == torch.bfloat16
    torch.testing.assert_close(bias.float(), 2 * model.get_parameter("0.bias"), rtol=1e-2, atol=0)


def test_another_checkpoint_is_refused(model: nn.Module) -> None:
    """By other numbers, by another length, by a name that is not there."""
    one = tuned(model)
    torch.manual_seed(1)
    others = [
        nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(3, 5)), nn.ModuleList([nn.ReLU()])
    ]  # fmt: skip

    for other, why in zip(others, ("other numbers", r"has \(5,\)", "lacks the"), strict=True):
        with pytest.raises(MismatchError, match=why):
            with_tuned(other.eval(), one)


def _without(tensors: dict[str, Any]) -> dict[str, Any]:
    del tensors["tuned 0.bias"]
    return tensors


def _infinite(tensors: dict[str, Any]) -> dict[str, Any]:
    tensors["tuned 0.bias"][0] = np.inf
    return tensors


def _matrix(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor[:, None] for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [_without, _infinite, _matrix])
def test_files_that_say_something_else_are_refused(
    model: nn.Module, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Though their checksum is the one that is stated."""
    one = tuned(model)
    content = save(change({name: t.copy() for name, t in load(one.content).items()}))
    stated = {**one.to_dict(), "sha256": sha256(content).hexdigest()}

    with pytest.raises(FileFormatError, match="'0.bias' is no pair of finite float32 vectors"):
        TunedParameters.from_content(content, stated)


def test_another_file_is_refused(model: nn.Module) -> None:
    """By its checksum, by what it is, by how many parameters are spoken of."""
    one = tuned(model)
    stated = one.to_dict()

    with pytest.raises(FileFormatError, match="their SHA-256 is another"):
        TunedParameters.from_content(b"other", stated)
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        TunedParameters.from_content(b"other", {**stated, "sha256": sha256(b"other").hexdigest()})
    with pytest.raises(FileFormatError, match="has 1 parameters, and the assignment speaks of 2"):
        TunedParameters.from_content(one.content, {**stated, "num_parameters": 2})
