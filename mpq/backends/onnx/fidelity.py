"""Whether a graph computes what the network computes, before anything is rounded."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch

from mpq.backends.onnx.instantiate import fill
from mpq.backends.onnx.session import open_session
from mpq.backends.onnx.template import GraphTemplate
from mpq.errors import ModelError
from mpq.network.layer import Layer
from mpq.network.outputs import scored_tensor
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer

if TYPE_CHECKING:
    import onnx

SAME: Final = 1e-5
"""How far the graph's output may be from the network's, relative to the largest number."""


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


def check_same(template: GraphTemplate) -> None:
    """Makes sure that the graph with every layer as it is equals the network.

    Raises:
        ModelError: If it does not, on the template's example; says how far off it is.
    """
    precisions = {layer.name: ORIGINAL for layer in template.network.layers}
    graph = fill(template, precisions, Quantizer(ActivationRanges({})))
    found = _run(graph, template.feeds)
    batch = template.example
    with torch.no_grad():
        output = scored_tensor(template.network.module(*batch.args, **batch.kwargs))
    expected = output.double().cpu().numpy()
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


def _run(graph: "onnx.ModelProto", feeds: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if find_spec("onnxruntime") is not None:
        output = open_session(graph).run(None, dict(feeds))[0]
    else:
        from onnx.reference import ReferenceEvaluator

        output = cast(Any, ReferenceEvaluator(graph).run(None, dict(feeds)))[0]
    return np.asarray(output, dtype=np.float64)
