"""What a comparison of estimators is not made with."""

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
