"""Weights that were rounded with regard to data, kept: codes, scales, zero points.

No torch here: an assignment holds them, and its file is read without torch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import Any, Final, Self, final

import numpy as np

from mpq._support.companion_content import stated_tensors
from mpq._support.json_object import quoted
from mpq._support.tensor_file import array_entries, file_parts
from mpq.errors import FileFormatError, PrecisionError
from mpq.quantization.branch_numbers import OF_LOW_RANK, OF_SPARSE, BranchNumbers, branch_of
from mpq.quantization.part_codes import beside_integers, by_themselves, why_not_codes
from mpq.quantization.precision import spell_weight
from mpq.quantization.scale_formats import SCALE_FORMATS
from mpq.quantization.tensor_format import TensorFormat

WEIGHTS_FILE: Final = "assignment.safetensors"
"""Beside assignment.json."""
CODE_TYPES: Final = ("int8", "uint8", "int16", "uint16", "float16", "float32")
"""Types of codes, the first that holds all of a format's."""
_PARTS: Final = ("codes", "scale", "zero_point", "signature")
_MORE_PARTS: Final = ("scale_step", "scale_mean", "levels")
"""Of some formats."""
_OF_BRANCH: Final = (*OF_SPARSE, *OF_LOW_RANK)
"""Of formats with a branch."""
NUMBERS_AT_ONCE: Final = 1 << 18
"""Of a weight, that are looked at in float64."""
_SAME_ROW, _SAME_ROWS = 1e-2, 2e-3
"""How far a row, and the root mean square of all, may be from what was rounded, relative to its
length: bfloat16 moves rows by 1e-3, another checkpoint by more."""


@final
@dataclass(frozen=True, eq=False)
class StoredWeight:
    """One weight ``[O, K]`` as codes: what cannot be computed again without the data.

    Args:
        codes: ``[O, K]`` in the first of ``CODE_TYPES`` that holds them; of a floating-point format
            numbers in units of their scale, of a table or codebook the place of each
            (``mpq.quantization.part_codes``: but for signs beside integers).
        scale: ``[O, G]`` float32, as ``mpq.quantization.codes.Codes`` has them.
        zero_point: ``[O, G]`` int32, or float32 where it may be a fraction; 0 where the format is
            symmetric.
        signature: ``[O]`` float32, ``signature_of`` the rows that were rounded.
        scale_step: ``[num_second_scales]`` float32, where the scales have second ones, as
            ``mpq.quantization.second_scales.SecondScales`` has them.
        levels: ``[O, N]`` float16, ascending, where every channel has a codebook.
        scale_mean: ``[1]`` float32, or ``[0]`` where scales are not stored around their mean.
        branch: What is added to what the codes stand for.
    """

    codes: "np.ndarray[Any, np.dtype[Any]]"
    scale: "np.ndarray[Any, np.dtype[np.float32]]"
    zero_point: "np.ndarray[Any, np.dtype[np.int32]] | np.ndarray[Any, np.dtype[np.float32]]"
    signature: "np.ndarray[Any, np.dtype[np.float32]]"
    scale_step: "np.ndarray[Any, np.dtype[np.float32]] | None" = None
    scale_mean: "np.ndarray[Any, np.dtype[np.float32]] | None" = None
    levels: "np.ndarray[Any, np.dtype[np.float16]] | None" = None
    branch: BranchNumbers | None = None

    def part(self, rows: "slice | np.ndarray[Any, np.dtype[np.int64]]") -> Self:
        """Some channels, without what the scales of the whole weight are stored relative to."""
        return type(self)(
            self.codes[rows],
            self.scale[rows],
            self.zero_point[rows],
            self.signature[rows],
            levels=None if self.levels is None else self.levels[rows],
            branch=None if self.branch is None else self.branch.part(rows),
        )

    def by_itself(self, tensor_format: TensorFormat) -> Self:
        """A part of a weight, all in one format, as a weight of that format is kept."""
        return replace(self, codes=by_themselves(self.codes, tensor_format.number))

    def is_of(self, tiles: "Iterable[np.ndarray[Any, Any]]") -> bool:
        """Whether these are codes of a weight, and not of another checkpoint's.

        Args:
            tiles: Its rows ``[r, K]``, some at a time, in order.
        """
        lengths, signatures = [], []
        for rows in tiles:
            if rows.shape[1] != self.codes.shape[1]:
                return False
            lengths.append(np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1)))
            signatures.append(signature_of(rows).astype(np.float64))
        if sum(map(len, lengths)) != len(self.codes):
            return False
        moved = np.abs(np.concatenate(signatures) - self.signature.astype(np.float64))
        share = moved / np.maximum(np.concatenate(lengths), np.finfo(np.float32).tiny)
        return bool(share.max() <= _SAME_ROW and np.sqrt(np.square(share).mean()) <= _SAME_ROWS)

    def why_not(self, tensor_format: TensorFormat, weight_shape: Sequence[int]) -> str:
        """Why these cannot be the codes of a weight in a format; empty: they can.

        Args:
            tensor_format: The one that the layer is assigned.
            weight_shape: Of the layer, as torch stores it.
        """
        if tensor_format.is_exact or not tensor_format.number.needs_scale:
            return "are of a format with scales"
        expected, count = code_type(tensor_format), prod(weight_shape)
        if str(self.codes.dtype) != expected or self.codes.size != count:
            return f"are {self.codes.size} of {self.codes.dtype}, not {count} of {expected}"
        channels, num_inputs = self.codes.shape
        groups = -(-num_inputs // tensor_format.numbers_per_scale(num_inputs))
        shapes = {array.shape for array in (self.scale, self.zero_point)}
        if shapes != {(channels, groups)} or self.signature.shape != (channels,):
            return f"have scales of {self.scale.shape}, not of {(channels, groups)}"
        if not np.isfinite(self.scale).all():
            return "have scales that are not finite"
        points = "float32" if tensor_format.float_zero else "int32"
        if self.zero_point.dtype != points or not np.isfinite(self.zero_point).all():
            return f"have zero points of {self.zero_point.dtype}, not finite ones of {points}"
        why = (
            self._why_not_scales(tensor_format)
            or self._why_not_levels(tensor_format)
            or self._why_not_branch(tensor_format)
        )
        if why:
            return why
        return why_not_codes(self.codes, tensor_format)

    def _why_not_scales(self, tensor_format: TensorFormat) -> str:
        """Why the second scales are not those of the format; empty: they are."""
        step, mean = self.scale_step, self.scale_mean
        told = SCALE_FORMATS[tensor_format.scale or "fp32"]
        if not told.second_scale:
            return "" if step is None and mean is None else "have second scales"
        if step is None or mean is None:
            return f"have no second scales, which those in {told.name} need"
        expected = (told.num_second_scales(self.scale.size),), (int(told.has_mean),)
        if (step.shape, mean.shape) != expected:
            return f"have second scales of {(step.shape, mean.shape)}, not of {expected}"
        is_fine = np.isfinite(mean).all() and np.isfinite(step).all() and (step > 0).all()
        return "" if is_fine else "have second scales that are not positive and finite"

    def _why_not_levels(self, tensor_format: TensorFormat) -> str:
        """Why the codebooks are not those of the format; empty: they are."""
        number, levels = tensor_format.number, self.levels
        if not number.has_codebook:
            return "" if levels is None else "have codebooks"
        expected = (len(self.codes), 2**number.bits)
        if levels is None or levels.shape != expected or levels.dtype != "float16":
            return f"have no codebooks of {expected} in float16"
        is_fine = np.isfinite(levels).all() and (np.diff(levels, axis=1) >= 0).all()
        is_fine &= bool((self.scale == 1).all())
        return "" if is_fine else "have levels that are not finite, not ascending, or scaled"

    def _why_not_branch(self, tensor_format: TensorFormat) -> str:
        """Why the branch is not that of the format; empty: it is."""
        branch, (channels, num_inputs) = tensor_format.branch, self.codes.shape
        if self.branch is not None:
            return self.branch.why_not(branch, (channels, num_inputs))
        return "" if branch is None else f"have no branch (+{branch})"

    def parts(self) -> "dict[str, np.ndarray[Any, Any]]":
        """The arrays by name."""
        found = {part: getattr(self, part) for part in (*_PARTS, *_MORE_PARTS)}
        beside = {} if self.branch is None else self.branch.arrays()
        return {part: array for part, array in found.items() if array is not None} | beside

    @classmethod
    def of_parts(cls, parts: "Mapping[str, np.ndarray[Any, Any]]") -> Self:
        """Inverse of ``parts``."""
        own: dict[str, Any] = {n: array for n, array in parts.items() if n not in _OF_BRANCH}
        return cls(**own, branch=branch_of(parts))


def joined(
    parts: Sequence[StoredWeight],
    second: "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | tuple[None, None]",
) -> StoredWeight:
    """A weight of which some channels came after the other.

    Args:
        parts: Consecutive channels without branches, at least one part.
        second: Step and mean of the scales of the whole weight.
    """
    step, mean = second
    if len(parts) == 1:
        return replace(parts[0], scale_step=step, scale_mean=mean)
    arrays = {
        name: np.concatenate([part.parts()[name] for part in parts])
        for name in parts[0].parts()
        if name not in ("scale_step", "scale_mean")
    }
    return replace(StoredWeight.of_parts(arrays), scale_step=step, scale_mean=mean)


def of_channels(parts: Sequence[StoredWeight], tensor_format: TensorFormat) -> StoredWeight:
    """A weight whose channels, inputs or groups may have bits of their own.

    Args:
        parts: ``[F]`` the whole weight in each of ``tensor_format.by_channel``.
        tensor_format: That it is stored in.
    """
    if tensor_format.channels is None:
        return parts[0]
    size = tensor_format.numbers_per_scale(parts[0].codes.shape[1])
    cells, of_scales = tensor_format.channels.cells, tensor_format.channels.of_scales(size)
    pairs = zip(parts, tensor_format.by_channel, strict=True)
    codes = _chosen([beside_integers(part.codes, own.number) for part, own in pairs], cells)
    scale, point = (
        _chosen([part.parts()[name] for part in parts], of_scales)
        for name in ("scale", "zero_point")
    )
    return StoredWeight(codes, scale, point, parts[0].signature)


def _chosen(
    parts: "Sequence[np.ndarray[Any, Any]]", index: "np.ndarray[Any, Any]"
) -> "np.ndarray[Any, Any]":
    """Of several arrays the one that ``index`` says, against which they are broadcast."""
    found = parts[0]
    for place, part in enumerate(parts):
        found = np.where(index == place, part, found)
    return found


def signature_of(rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, np.dtype[np.float32]]":
    """``[O]``: every row of a weight ``[O, K]`` times fixed signs, which tells weights apart.

    >>> signature_of(np.array([[1.0, 2.0, 4.0]])).tolist()
    [-1.0]
    """
    # SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) of an input's place, wrapping.
    place = np.arange(1, rows.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (place ^ (place >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    signs = 1.0 - 2.0 * (mixed >> np.uint64(63)).astype(np.float64)
    step = max(1, NUMBERS_AT_ONCE // max(rows.shape[1], 1))
    tiles = (rows[i : i + step] for i in range(0, len(rows), step))
    found = [(tile.astype(np.float64) @ signs).astype(np.float32) for tile in tiles]
    return np.concatenate(found) if found else np.zeros(0, np.float32)


@final
@dataclass(frozen=True, eq=False)
class StoredWeights:
    """The weights of an assignment that were rounded with regard to data.

    Args:
        rounding: How they were rounded, as ``mpq.rounding.ROUNDINGS`` spells it.
        by_layer: Layer name to its weight.
    """

    rounding: str
    by_layer: Mapping[str, StoredWeight] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredWeights):
            return NotImplemented
        return (self.rounding, self.sha256) == (other.rounding, other.sha256)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def check_positive(self, tool: str) -> None:
        """Refuses negative scales, for a tool that reads none.

        Raises:
            PrecisionError: Names the first layer that has one.
        """
        found = [name for name, weight in self.by_layer.items() if (weight.scale < 0).any()]
        if found:
            raise PrecisionError(
                f"{tool} reads positive scales, and {len(found)} layers have negative ones, such "
                f"as {quoted(min(found))}: search with --rounding auto:signs=false, or where "
                f"`mpq targets` lists it with --to {tool}"
            )

    def to_dict(self, formats: Mapping[str, TensorFormat]) -> dict[str, str]:
        """What an assignment's JSON says of them.

        Args:
            formats: Layer name to the format that it is assigned.
        """
        return {
            "rounding": self.rounding,
            "file": WEIGHTS_FILE,
            "sha256": self.sha256,
            "formats": self.mark_of(formats),
        }

    def mark_of(self, formats: Mapping[str, TensorFormat]) -> str:
        """Of the formats that codes are in, 16 hexadecimal digits: small codes fit many formats."""
        known = sorted(self.by_layer.keys() & formats.keys())
        told = "\n".join(f"{name} {spell_weight(formats[name])}" for name in known)
        return sha256(told.encode()).hexdigest()[:16]

    @property
    def tensors(self) -> "dict[str, np.ndarray[Any, Any]]":
        """The arrays by their names in a file: ``<layer>.codes``, ``.scale`` and so on."""
        return {
            f"{name}.{part}": array
            for name, weight in self.by_layer.items()
            for part, array in weight.parts().items()
        }

    def content_parts(self) -> "Iterator[bytes | memoryview]":
        """The content of a file in the format of safetensors, piece by piece."""
        return file_parts(array_entries(self.tensors))

    @property
    def content(self) -> bytes:
        """All of them."""
        return b"".join(self.content_parts())

    @cached_property
    def sha256(self) -> str:
        """Of ``content``."""
        found = sha256()
        for part in self.content_parts():
            found.update(part)
        return found.hexdigest()

    @classmethod
    def from_content(cls, content: bytes | memoryview, rounding: str, expected_sha256: str) -> Self:
        """Inverse of ``content``.

        Args:
            content: Of the file.
            rounding: What the assignment says of it.
            expected_sha256: The same.

        Raises:
            FileFormatError: If it is another file than the one that was written.
        """
        return cls.of_tensors(stated_tensors(content, expected_sha256, "weights"), rounding)

    @classmethod
    def of_tensors(cls, tensors: "Mapping[str, np.ndarray[Any, Any]]", rounding: str) -> Self:
        """What the arrays of such a file are.

        Args:
            tensors: By their names in it.
            rounding: See ``from_content``.

        Raises:
            FileFormatError: If one is missing.
        """
        names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
        missing = [f"{n}.{p}" for n in names for p in _PARTS if f"{n}.{p}" not in tensors]
        if missing:
            raise FileFormatError(f"the weights lack {quoted(missing[0])}")
        parts = {
            name: {
                part: tensors[f"{name}.{part}"]
                for part in (*_PARTS, *_MORE_PARTS, *_OF_BRANCH)
                if f"{name}.{part}" in tensors
            }
            for name in names
        }
        weights = {name: StoredWeight.of_parts(found) for name, found in parts.items()}
        return cls(rounding, weights)


def code_type(tensor_format: TensorFormat) -> str:
    """The one of ``CODE_TYPES`` that holds every code of a format that needs a scale."""
    number = tensor_format.number
    if tensor_format.table or number.has_codebook:
        return "uint8"
    if number.is_float and tensor_format.channels is None:
        finest = 2.0 ** (number.min_exponent - number.mantissa_bits)
        half = SCALE_FORMATS["fp16"]
        is_half = number.max_value <= half.largest and finest >= half.smallest
        return "float16" if is_half else "float32"
    sign = "int" if tensor_format.symmetric else "uint"
    return f"{sign}{8 if number.bits <= 8 else 16}"
