"""HiGHS that Ctrl-C ends at once."""

from threading import Event, Thread, current_thread, main_thread
from typing import Any, Final, final

import pulp

_LOOK_S: Final = 0.1
"""Between two looks whether it is over, or interrupted."""


@final
class InterruptibleHiGHS(pulp.HiGHS):  # type: ignore[misc]
    """HiGHS in a thread of its own, as Python hears of Ctrl-C between its own instructions only."""

    is_warm = False
    """Whether the variables' values are its first solution; PuLP 3 leaves that out."""

    def callSolver(self, lp: Any) -> None:  # noqa: N802 (PuLP names it)
        """Called by PuLP once the model is built."""
        if self.is_warm:
            import highspy

            start = highspy.HighsSolution()
            # In the order of `variables()`, in which PuLP added the columns.
            start.col_value = [variable.varValue for variable in lp.variables()]
            lp.solverModel.setSolution(start)
        _run(lp.solverModel)


def _run(model: Any) -> None:
    # Signals reach the main thread alone; an older HiGHS cannot be told to stop.
    if current_thread() is not main_thread() or not hasattr(model, "cancelSolve"):
        model.run()
        return
    model.HandleUserInterrupt = True
    # Not `Thread.join`, which takes a thread for ended once it was interrupted itself.
    is_over = Event()
    Thread(target=_in_thread, args=(model, is_over), daemon=True).start()
    try:
        while not is_over.wait(_LOOK_S):
            pass
    except KeyboardInterrupt:
        model.cancelSolve()
        # A process that ends under HiGHS aborts.
        is_over.wait()
        raise


def _in_thread(model: Any, is_over: Event) -> None:
    try:
        model.run()
    finally:
        is_over.set()
