"""Events as a run of TensorBoard."""

from pathlib import Path
from typing import final

from mpq._support.events import Callback, Ended, Event
from mpq.callbacks.results import Finished
from mpq.callbacks.tracked import Steps, numbers
from mpq.errors import MissingDependencyError


@final
class TensorBoard(Callback):
    """Writes what is measured as scalars, and the outcome beside its settings (``add_hparams``).

    A scalar's step counts the numbers of its name: networks measured on held-out examples are
    ``held_out/loss`` 0, 1, 2, ... in their order.

    Args:
        folder: Of this run, such as ``runs/a``; TensorBoard shows ``runs``.

    Raises:
        MissingDependencyError: Without the package ``tensorboard``.
    """

    def __init__(self, folder: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                "the callback TensorBoard needs tensorboard: pip install 'mpq[tensorboard]'"
            ) from error
        self._make, self._folder = SummaryWriter, str(folder)
        self._writer: SummaryWriter | None = None
        self._steps = Steps()

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        # It writes its header at once: a run that is refused leaves no empty one.
        if self._writer is None:
            self._writer = self._make(self._folder)
        if isinstance(event, Finished):
            # In the run itself: by default the table has a run of its own, called by the time.
            self._writer.add_hparams(dict(event.settings), numbers(event), run_name=".")
        else:
            for name, number, step in self._steps.of(event):
                self._writer.add_scalar(name, number, step)
        if isinstance(event, Ended):
            self._writer.close()
            self._writer = None
