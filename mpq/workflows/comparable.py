"""What a comparison of estimators is not made with."""

from collections.abc import Collection

from mpq._support.bounds import check_whole
from mpq.errors import InputError
from mpq.workflows.task import Task


def refuse_uncompared(task: Task) -> None:
    """Refuses what has no losses that estimators could be judged by.

    Args:
        task: What was asked.

    Raises:
        InputError: Names the part, and what to do.
    """
    if task.sequential_rounding:
        raise InputError(
            "compare measures how well losses are predicted, and no prediction is of codes that "
            "are made again for one answer: leave out sequential_rounding (--sequential-rounding)"
        )
    if task.bias_correction:
        raise InputError(
            "compare measures how well losses are predicted, and no prediction is of biases that "
            "are corrected for one answer: leave out bias_correction (--bias-correction)"
        )
    if task.tune is not None:
        raise InputError(
            "compare measures how well losses are predicted, and no prediction is of an answer "
            "that is tuned: leave out tune (--tune)"
        )
    if task.parts is not None:
        raise InputError(
            "compare measures how well losses of layers are predicted, which are whole there: "
            "leave out split (--split)"
        )
    if task.recalibrate:
        raise InputError(
            "compare measures how well losses are predicted, and no prediction is of ranges that "
            "are chosen again for one answer: leave out recalibrate (--recalibrate)"
        )
    if task.built_workers is not None and task.built_workers.kind == "torchrun":
        raise InputError(
            "the processes of torchrun share a search; estimators and assignments are compared by "
            "--workers ray, or in one process"
        )


def check_numbers(limits: Collection[str], num_random: int, refine: int) -> None:
    """Refuses what nothing can be compared by, in the words of Python and of the command line.

    Args:
        limits: As written.
        num_random: Random assignments near each.
        refine: Rounds of refinement of an optimum.

    Raises:
        InputError: If there is no limit, or a number is out of its bounds.
    """
    if not limits:
        raise InputError(
            "give at least one limit (--limit), such as effective_bits=4: assignments are drawn "
            "near it"
        )
    random, rounds = "num_random (--random)", "refine (--refine)"
    # Two points always have a rank correlation of 1 or -1.
    if num_random < 3:
        raise InputError(f"{random} is at least 3, to be ranked; got {num_random}")
    if refine < 0:
        raise InputError(f"{rounds} is at least 0; got {refine}")
    check_whole("num_random", num_random, random)
    check_whole("refine", refine, rounds)
