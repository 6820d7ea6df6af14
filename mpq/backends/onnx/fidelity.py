"""Whether a graph computes what the network computes, before anything is rounded."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpq.backends.onnx.instantiate import fill
from mpq.backends.onnx.session import open_session
from mpq.backends.onnx.template import GraphTemplate
from mpq.errors import ModelError
from mpq.network.examples import Batch, Calibration
from mpq.network.layer import Layer
from mpq.network.outputs import scored_tensor
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer

if TYPE_CHECKING:
    import onnx

SAME: Final = 1e-5
"""How far the graph's output may be from the network's, relative to the largest number."""
NUM_BATCHES: Final = 8
"""Calibration batches on which the two are compared."""


def refuse_own_forwards(layers: Sequence[Layer], precisions: Mapping[str, Precision]) -> None:
    """Refuses layers that ONNX's operators would compute as torch's plain ones.

    Args:
        layers: The network's layers.
        precisions: What each is to be written in.

    Raises:
        ModelError: If a layer with a forward of its own is quantized; names all of them.
    """
    own = [x.name for x in layers if x.has_own_forward and precisions[x.name] != ORIGINAL]
    if own:
        raise ModelError(
            f"layers with a forward of their own cannot be exported quantized: {', '.join(own)}; "
            "leave them out of the search (--exclude), and they are written as torch computes them"
        )


def check_same(template: GraphTemplate, data: Calibration) -> None:
    """Makes sure that the graph with every layer as it is equals the network.

    Args:
        template: What was exported.
        data: Calibration examples; one run of each of the first batches is compared, as control
            flow that depends on numbers may have taken another branch on the example.

    Raises:
        ModelError: If it does not; says how far off it is.
    """
    precisions = {layer.name: ORIGINAL for layer in template.network.layers}
    run = _runner(fill(template, precisions, Quantizer(ActivationRanges({}))))
    for batch, feeds in _runs(template, data):
        found = run(feeds)
        with torch.no_grad():
            output = scored_tensor(template.network.module(*batch.args, **batch.kwargs))
        _compare(found, output.double().cpu().numpy())


def _runs(
    template: GraphTemplate, data: Calibration
) -> Iterator[tuple[Batch, Mapping[str, npt.NDArray[Any]]]]:
    """The example, and what the graph can read of the first batches."""
    yield template.example, template.feeds
    size = template.example.size
    for index, batch in enumerate(islice(template.network.batches(data), NUM_BATCHES)):
        # Of the first batch the example is the beginning: its end says more.
        start = batch.size - size if index == 0 else 0
        if batch.size < size or (index == 0 and start == 0):
            continue
        run = batch.slice(start, start + size)
        tensors = [x for x in (*run.args, *run.kwargs.values()) if isinstance(x, Tensor)]
        values = [x.cpu().numpy() for x in tensors]
        if [x.shape for x in values] == [x.shape for x in template.feeds.values()]:
            yield run, dict(zip(template.feeds, values, strict=True))


def _compare(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    if found.shape != expected.shape:
        raise ModelError(f"the ONNX graph gives {found.shape}, the network {expected.shape}")
    error, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    # Written so that nan is refused, too.
    if not error <= SAME * largest:
        raise ModelError(
            f"the ONNX graph with every layer in fp32 is {error:.3g} off the network, whose "
            f"largest output is {largest:.3g}: something is not written as it is computed, so "
            "that no file was made"
        )


def _runner(
    graph: "onnx.ModelProto",
) -> Callable[[Mapping[str, npt.NDArray[Any]]], npt.NDArray[Any]]:
    """Runs the graph; it is loaded once."""
    session: Any
    if find_spec("onnxruntime") is not None:
        session = open_session(graph)
    else:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(graph)
    return lambda feeds: np.asarray(session.run(None, dict(feeds))[0], dtype=np.float64)
