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
