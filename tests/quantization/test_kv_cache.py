"""What a key-value cache may be stored in, and the numbers that come out of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mpq.errors import InputError, PrecisionError
from mpq.quantization.cache_bits import shared_bits, token_bits
from mpq.quantization.cached_rows import quantize_cached
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.numerics import OWN
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange


def test_a_token_of_a_head_has_a_scale_in_half_precision() -> None:
    """Affine, between its own ends, as numpy does it number by number."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2 * 4)

    found = quantize_cached(x, Precision.parse("w32a4d").activation, None, 2, OWN)

    for row, rounded in zip(x.view(-1, 4).numpy(), found.view(-1, 4).numpy(), strict=True):
        low, high = min(row.min(), 0), max(row.max(), 0)
        step = np.float32((high - low) / 15)
        point = np.rint(-low / step)
        stored = np.float32(np.float16(step))
        codes = np.clip(np.rint(row / stored) + point, 0, 15)
        np.testing.assert_allclose(rounded, (codes - point) * stored, rtol=1e-6)


def test_a_channel_of_every_head_has_a_range() -> None:
    """What was calibrated is used as for the inputs of any layer."""
    x = torch.tensor([[[1.0, 10.0], [0.5, -10.0]]])
    calibrated = ActivationRange(-10, 10, channels=((0.0, 1.0), (-10.0, 10.0)))

    found = quantize_cached(x, Precision.parse("w32a8c").activation, calibrated, 1, OWN)

    torch.testing.assert_close(found, x, atol=0.04, rtol=0)
    assert float(found[0, 0, 0]) == 1.0


def test_rounding_of_a_token_does_not_depend_on_others() -> None:
    """So that a token can be rounded when it comes, and never again."""
    torch.manual_seed(0)
    x, tensor_format = torch.randn(2, 5, 8), Precision.parse("w32a3d").activation

    whole = quantize_cached(x, tensor_format, None, 2, OWN)

    alone = [quantize_cached(x[:, t, None], tensor_format, None, 2, OWN) for t in range(5)]
    assert torch.equal(whole, torch.cat(alone, dim=1))


@pytest.mark.parametrize(
    ("spelled", "of_token", "shared"),
    [
        ("a4d", 2 * 16 * 4 + 2 * (16 + 4), 0),
        ("a4sd", 2 * 16 * 4 + 2 * 16, 0),
        ("a4c", 2 * 16 * 4, 32 * (32 + 4)),
        ("a8", 2 * 16 * 8, 32 + 8),
        ("afp8", 2 * 16 * 8, 32),
        ("a16", 2 * 16 * 16, 0),
    ],
)
def test_scales_are_counted(spelled: str, of_token: int, shared: int) -> None:
    """Those of a token, and those that all tokens share; a zero point takes a code."""
    held = Precision.parse(f"w32{spelled}").activation
    assert (token_bits(held, 2, 16), shared_bits(held, 32)) == (of_token, shared)


def test_candidates_are_spelled_as_inputs_are() -> None:
    """With or without the weight that is not there, each once."""
    found = KVCache(10, ["a4d", "w32a4d", Precision.parse("w32a8c")]).precisions
    assert found == (Precision.parse("w32a4d"), Precision.parse("w32a8c"))


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (["w4a8"], "has no weights; write it as a4d"),
        (["a8f"], "say how many"),
        (["a4twin"], "no such codes"),
        (["4d"], "is not a precision"),
        ([], "got none"),
        ("a8d", r"write \['a8d'\]"),
    ],
)
def test_other_candidates_are_refused(candidates: list[str], message: str) -> None:
    """With what to write instead."""
    with pytest.raises(InputError, match=message):
        KVCache(10, candidates)
    assert issubclass(PrecisionError, InputError)


@pytest.mark.parametrize(("name", "value"), [("tokens", 0), ("batch_size", 0), ("first", -1)])
def test_numbers_are_what_they_can_be(name: str, value: Any) -> None:
    """A context has a token, a batch a sequence, and no fewer tokens than none are kept."""
    with pytest.raises(InputError, match=name):
        replace(KVCache(10), **{name: value})
