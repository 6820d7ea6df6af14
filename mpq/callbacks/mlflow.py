"""Events as a run of MLflow."""

from typing import Any, Protocol, final

from mpq._support.events import Callback, Event
from mpq.callbacks.results import Finished
from mpq.callbacks.tracked import Steps
from mpq.errors import MissingDependencyError


class Tracker(Protocol):
    """What of the module ``mlflow`` is used; anything else that has it will do."""

    def log_params(self, params: dict[str, Any]) -> Any:
        """Notes settings of the run."""

    def log_metric(self, key: str, value: float, step: int) -> Any:
        """Notes a number of the run."""


@final
class MLflow(Callback):
    """Logs what is measured as metrics, and the outcome with its settings as parameters.

    A run is begun and ended by whoever calls::

        with mlflow.start_run():
            mpq.search(task, limits, callbacks=[MLflow()])

    Args:
        tracker: Where it is logged to; default: the module ``mlflow``.

    Raises:
        MissingDependencyError: Without ``mlflow``, where no tracker is given.
    """

    def __init__(self, tracker: Tracker | None = None) -> None:
        self._tracker = _mlflow() if tracker is None else tracker
        self._steps = Steps()

    def on(self, event: Event) -> None:
        """See ``Callback.on``."""
        if isinstance(event, Finished):
            self._tracker.log_params(dict(event.settings))
        for name, number, step in self._steps.of(event):
            self._tracker.log_metric(name, number, step=step)


def _mlflow() -> Tracker:
    try:
        import mlflow
    except ImportError as error:
        raise MissingDependencyError(
            "the callback MLflow needs mlflow: pip install 'mpq[mlflow]', or give a tracker"
        ) from error
    found: Tracker = mlflow
    return found
