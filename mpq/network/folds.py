"""Examples left out in turn."""

from itertools import chain, pairwise

from mpq.network.examples import Calibration


def folds(data: Calibration, share: float) -> list[tuple[Calibration, Calibration]]:
    """The others and one part of the examples, for every part; the first as ``data.split`` has it.

    Parts are as long as the last, and as many as there are whole ones: four of a quarter.

    Args:
        data: Two examples or more.
        share: Of the examples, in a part.

    Raises:
        DataError: If there are fewer than two examples.
    """
    first = data.split(share)
    count, length = data.num_examples, first[1].num_examples
    starts = range(count - 2 * length, -1, -length)
    return [first, *(_left_out(data, start, start + length) for start in starts)]


def parts(data: Calibration, share: float) -> list[Calibration]:
    """The examples in consecutive parts: ``folds`` leaves the last one out first, then the others.

    What is no whole part comes before all of them, and is never left out.

    Args:
        data: As in ``folds``.
        share: As there.

    Raises:
        DataError: If there are fewer than two examples.
    """
    count, length = data.num_examples, data.split(share)[1].num_examples
    borders = [0, *range(count % length or length, count + 1, length)]
    return [data.between(start, stop) for start, stop in pairwise(borders)]


def _left_out(data: Calibration, start: int, stop: int) -> tuple[Calibration, Calibration]:
    part, after = data.between(start, stop), data.between(stop, data.num_examples)
    if not start:
        return after, part
    before = data.between(0, start)
    # Both with the data's own axes, which their batches keep.
    others = Calibration(lambda: chain(before, after))
    return others.whole() if data.is_whole else others, part
