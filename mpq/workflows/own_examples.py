"""Calibration examples that a recipe makes by itself."""

from mpq.errors import InputError
from mpq.network.arguments import tensors_in
from mpq.network.examples import Calibration
from mpq.network.synthetic import DATA_SOURCES
from mpq.workflows.task import Task


def source_of(spec: str) -> str | None:
    """The source of examples that a text names, without their shape; ``None``: it names none.

    >>> source_of("batch-norm:shape=3x6x6,steps=2"), source_of("batch-norm:shape=3x6x6")
    ('batch-norm:steps=2', 'batch-norm')
    """
    name, _, written = spec.partition(":")
    if name not in DATA_SOURCES.names():
        return None
    options = [x.strip() for x in written.split(",")]
    kept = ",".join(x for x in options if x and x.partition("=")[0].strip() != "shape")
    return f"{name}:{kept}" if kept else name


def own_examples(task: Task, source: str) -> Calibration:
    """Made by a source for inputs of the shape that the task's examples have.

    Args:
        task: Whose examples say the shape.
        source: A name of ``DATA_SOURCES`` with options, without a shape.

    Raises:
        InputError: If the task's first batch has no tensor of examples.
        ModelError: If the source cannot make any for this network.
    """
    first = Calibration.of(task.calibration).first()
    inputs = next(iter(tensors_in((first.args, dict(first.kwargs)))), None)
    if inputs is None or inputs.ndim < 2:
        raise InputError(
            f"the recipe makes its own examples ({source}) of the shape of those given: the first "
            "batch has no tensor of examples; keep the given ones (keep=['calibration'], --data)"
        )
    shape = "x".join(map(str, inputs.shape[1:]))
    joint = "," if ":" in source else ":"
    built = DATA_SOURCES.build(f"{source}{joint}shape={shape}", task.seed)
    return built.calibration(task.model)
