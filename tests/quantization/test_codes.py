"""Codes: the integers and scales that files hold, and the streams of bits that they become."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpq.quantization import codes
from mpq.quantization.codes import Codes, packed, unpacked
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS, MinMax
from mpq.quantization.rounding import quantize_rows, weight_grid

SPELLINGS = ["w2", "w3", "w4t", "w4z", "w5g8", "w4zg8", "w8", "w8z", "w3g7", "fp8", "fp4"]


def weight() -> torch.Tensor:
    """A weight with one row of zeros."""
    rows = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    rows[2] = 0
    return rows


@pytest.mark.parametrize("numerics", [Numerics(), Numerics("fp16", "bf16")], ids=str)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_codes_stand_for_what_the_simulation_computes_with(
    spelling: str, numerics: Numerics
) -> None:
    """Bit for bit, with scales that their dtype holds."""
    tensor_format = Precision.parse(f"{spelling}a32" if spelling[0] == "w" else spelling).weight
    grid = weight_grid(weight(), tensor_format, MinMax(), numerics)

    codes = Codes.of(weight(), tensor_format, grid)

    assert torch.equal(codes.numbers(), quantize_rows(weight(), tensor_format, grid))
    stored = numerics.group_scale if tensor_format.group_size else numerics.scale
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[stored]
    assert torch.equal(codes.scale.to(dtype).float(), codes.scale)


@pytest.mark.parametrize("spelling", ["w2a32", "w4za32", "w5g8a32", "w8a32", "w4zg8a32"])
def test_unsigned_codes_are_the_same_numbers(spelling: str) -> None:
    """Zero point taken off and times the scale, whatever the code of 0 is."""
    tensor_format = Precision.parse(spelling).weight
    codes = Codes.of(weight(), tensor_format, weight_grid(weight(), tensor_format, MinMax()))
    group = tensor_format.group_size or 20
    of_group = torch.arange(20) // group

    unsigned, points = codes.unsigned(), codes.unsigned_zero_points()

    assert int(unsigned.min()) >= 0
    assert int(unsigned.max()) < 2**tensor_format.number.bits
    numbers = (unsigned - points[:, of_group]) * codes.scale[:, of_group]
    assert torch.equal(numbers, codes.numbers())


def by_numpy(row: list[int], bits: int) -> bytes:
    """The same stream by one large whole number, filled up to whole words."""
    number = sum(code << (bits * place) for place, code in enumerate(row))
    return number.to_bytes(-(-len(row) * bits // 32) * 4, "little")


@given(st.data(), st.integers(1, 8), st.integers(1, 70))
def test_packing_is_one_dense_stream_of_bits(data: st.DataObject, bits: int, length: int) -> None:
    """A code may lie in two bytes or two words; unpacking gives it back."""
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, 2**bits - 1), min_size=length, max_size=length),
            min_size=1, max_size=3,
        )
    )  # fmt: skip

    stream = packed(torch.tensor(rows), bits)

    expected = [np.frombuffer(by_numpy(row, bits), np.uint8).tolist() for row in rows]
    assert stream.tolist() == expected
    assert unpacked(stream, bits, length).tolist() == rows


@pytest.mark.parametrize(
    ("shape", "bits", "sizes"),
    [
        ((5, 2**21), 4, [2, 2, 1]), ((3, 2**21), 8, [1, 1, 1]), ((3, 2**22), 8, [1, 1, 1]),
        ((4, 3), 8, [4]), ((2, 0), 8, [2]),
    ],
)  # fmt: skip
def test_a_large_weight_is_spread_out_by_some_rows(
    shape: tuple[int, int], bits: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 million bits at once, or a single row: one that is larger is packed all the same."""
    seen: list[int] = []

    def counted(rows: torch.Tensor, _: int) -> torch.Tensor:
        seen.append(len(rows))
        return torch.zeros(len(rows), 1, dtype=torch.uint8)

    monkeypatch.setattr(codes, "_packed", counted)

    found = codes.packed(torch.zeros(1, 1).expand(shape), bits)

    assert seen == sizes
    assert len(found) == shape[0]


@pytest.mark.parametrize("spelling", ["w4", "w4z", "w4t", "w4g4", "w3zg4", "w2"])
def test_codes_have_a_scale_for_each_group(spelling: str) -> None:
    """And codes in the range of their format, 0 of an unsigned one where its zero point says."""
    told = Precision.parse(spelling).weight
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    grid = weight_grid(rows, told, RANGE_METHODS.build("minmax"))

    found = codes.Codes.of(rows, told, grid)

    groups = 3 if told.group_size else 1
    assert found.num_groups == groups
    assert found.scale.shape == found.zero_point.shape == (3, groups)
    assert found.integers().shape == found.unsigned().shape == (3, 10)
    levels = 2**told.number.bits
    assert 0 <= int(found.unsigned().min()) < int(found.unsigned().max()) <= levels - 1
    shift = levels // 2 if told.symmetric else 0
    assert torch.equal(found.unsigned() - shift, found.integers())
    assert torch.equal(found.unsigned_zero_points() - shift, found.zero_point)
    if told.symmetric:
        assert not found.zero_point.any()


@pytest.mark.parametrize(
    ("spelling", "lowest", "bits", "signs"),
    [
        ("w4", -7, 4, [1, 1, 1]),
        ("w4", -8, 4, [1, -1, 1]),
        ("w4", -8, 8, [1, 1, 1]),
        ("w4t", -8, 4, [-1, -1, -1]),
        ("w4t", -8, 8, [1, 1, 1]),
        ("w8", -128, 8, [1, -1, 1]),
    ],
)
def test_scales_are_positive_where_codes_fit_with_another_sign(
    spelling: str, lowest: int, bits: int, signs: list[int]
) -> None:
    """The second row has the lowest code; the numbers stay, to the bit."""
    told = Precision.parse(f"{spelling}a32").weight
    sizes = [0.5, 0.5, 0.5] if spelling.endswith("t") else [0.5, 0.25, 2.0]
    is_negative = [-1, -1, -1] if spelling.endswith("t") else [1, -1, -1]
    scale = torch.tensor([sizes]).t() * torch.tensor([is_negative]).t()
    numbers = torch.tensor([[1.0, 2, -3], [lowest, 1, 0], [0, -1, 2]])
    found = Codes(told, numbers, scale, torch.zeros(3, 1, dtype=torch.int32), 3)

    turned = found.turned(bits)

    assert turned.scale[:, 0].sign().tolist() == signs
    assert torch.equal(turned.numbers(), found.numbers())
    assert int(turned.integers().min()) >= -(2 ** (bits - 1))
    assert int(turned.integers().max()) < 2 ** (bits - 1)
    assert turned.turned(bits) is turned or min(signs) < 0


def test_groups_turn_by_themselves() -> None:
    """What fills up the last group stays 0; codes of a zero point, or of no integers, stay."""
    told = Precision.parse("w4g2a32").weight
    numbers = torch.tensor([[-8.0, 1, 3, 0], [4, -7, -8, 0]])
    scale = torch.tensor([[-1.0, -2.0], [-1.0, -2.0]])
    found = Codes(told, numbers, scale, torch.zeros(2, 2, dtype=torch.int32), 3)

    turned = found.turned(4)

    assert turned.scale.tolist() == [[-1.0, 2.0], [1.0, -2.0]]
    assert turned.integers().tolist() == [[-8, 1, -3], [-4, 7, -8]]
    assert torch.equal(turned.numbers(), found.numbers())
