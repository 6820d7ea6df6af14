"""ONNX graphs of what is timed: a layer, two and what is between them, the network, nothing."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mpq.backends.onnx import Stretch, fill, idle_graph
from mpq.precision import Precision
from mpq.profiling.runtime import Array
from mpq.profiling.subject import Subject

if TYPE_CHECKING:
    import onnx


def stretch_graph(
    subject: Subject, stretch: Stretch, precisions: Mapping[str, Precision]
) -> tuple["onnx.ModelProto", list[Array]]:
    """A part of the network, from floats to floats, and its example inputs."""
    graph = fill(subject.skeleton, precisions, subject.quantizer, stretch.graph)
    return graph, list(stretch.examples)


def network_graph(
    subject: Subject, precisions: Mapping[str, Precision]
) -> tuple["onnx.ModelProto", list[Array]]:
    """The whole network, and its example inputs."""
    graph = fill(subject.skeleton, precisions, subject.quantizer)
    return graph, list(subject.skeleton.feeds.values())


def nothing() -> tuple["onnx.ModelProto", list[Array]]:
    """One number, handed through."""
    return idle_graph()
