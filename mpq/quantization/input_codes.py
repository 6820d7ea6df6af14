"""Levels of formats that are of inputs alone: powers of two, and two ranges.

No torch here, as in ``mpq.quantization.formats``.
"""

from typing import Final

MAX_OCTAVES: Final = 15
"""How far a finer scale may lie below the common one: four bits say it."""


def log2_levels(bits: int) -> tuple[float, ...]:
    r"""0 and powers of two up to 1, for inputs that are not below 0, such as a softmax's.

    A code :math:`q` stands for :math:`2^{-q}`, the last one for 0 (Lin et al. 2021, FQ-ViT,
    arXiv:2111.13824). Departs from it there: theirs stands for :math:`2^{1 - 2^b}`, and what is
    smaller becomes a 0 that has no code.

    Args:
        bits: ``b``, 2 or more.

    >>> log2_levels(2)
    (0.0, 0.25, 0.5, 1.0)
    """
    return (0.0, *(2.0**-q for q in range(2**bits - 2, -1, -1)))


def twin_levels(bits: int, octaves: int, is_signed: bool) -> tuple[float, ...]:
    r"""Two evenly spaced ranges of half of the codes each, in units of the coarser scale.

    One bit of a code says which range it is in, the scale of the finer one is :math:`2^{-m}` of the
    other. Of signed inputs (a GELU's) the finer range is below 0: :math:`-2^{b-1}` to 0, the
    coarser from 0 to :math:`2^{b-1} - 1`. Of others (a softmax's) both begin at 0, the finer for
    small numbers. Reference: Yuan et al. (2021), PTQ4ViT, arXiv:2111.12293, whose finer range
    covers all numbers below 0; here the number of octaves is searched. A number takes the nearest
    of all levels, whichever range that is in.

    Args:
        bits: ``b``, 3 or more.
        octaves: ``m``, at least 0.
        is_signed: Whether there are numbers below 0.

    >>> twin_levels(3, 2, True)
    (-1.0, -0.75, -0.5, -0.25, 0.0, 1.0, 2.0, 3.0)
    """
    half, fine = 2 ** (bits - 1), 2.0**-octaves
    if is_signed:
        return (*(code * fine for code in range(-half, 0)), *map(float, range(half)))
    return tuple(sorted({code * scale for code in range(half) for scale in (fine, 1.0)}))
