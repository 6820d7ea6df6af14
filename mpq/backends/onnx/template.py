"""A network as an ONNX graph in which every quantizable layer is one placeholder."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpq.backends.onnx.own_layer import OwnLayer
from mpq.backends.onnx.refusal import refusal
from mpq.errors import InputError, MissingDependencyError, ModelError
from mpq.network.arguments import input_of, read_by
from mpq.network.examples import Batch, Calibration
from mpq.network.metric import OutputMetric
from mpq.network.modules import hooks, share_parameters
from mpq.network.named_outputs import compared_tensors, output_names, scored_tensors
from mpq.network.network import Network
from mpq.network.open_weights import opened_parts

if TYPE_CHECKING:
    import onnx

PLACEHOLDER, DOMAIN = "Layer", "mpq"
"""Operator and domain of a placeholder; its attribute ``layer`` names the layer."""
Shape = tuple[int, ...]
NUM_SAMPLES = 16
"""Examples on which every layer's kernels are compared with the simulation."""


@final
@dataclass(frozen=True, eq=False)
class GraphTemplate:
    """The graph around the layers.

    Args:
        graph: With a node ``mpq::Layer`` wherever a layer is called, in float32.
        network: The network whose layers the placeholders stand for.
        example: Inputs of one run, ``[N, ...]`` with ``N`` the batch size.
        feeds: Those that are inputs of the graph, by name.
        layer_inputs: Example input of every call of every layer.
        samples: The same for up to ``NUM_SAMPLES`` examples at once, to compare kernels on.
        output_ranges: Smallest and largest output of every layer over the calibration examples.
        has_unscored: Whether the graph also gives what the network's metric does not look at.
    """

    graph: "onnx.ModelProto"
    network: Network
    example: Batch
    feeds: Mapping[str, npt.NDArray[Any]]
    layer_inputs: Mapping[str, tuple[Tensor, ...]]
    samples: Mapping[str, tuple[Tensor, ...]]
    output_ranges: Mapping[str, tuple[float, float]]
    has_unscored: bool = False

    @classmethod
    def of(
        cls,
        network: Network,
        data: Calibration,
        batch_size: int = 1,
        has_unscored: bool = False,
        with_own: bool = False,
    ) -> Self:
        """Exports the network once; shapes, the batch size among them, are those of the example.

        Args:
            network: In float32; its module stays as it is.
            data: Calibration examples: the first ones are the example inputs, all of them show the
                ranges of the layers' outputs.
            batch_size: Examples of one run; the graph takes no other number.
            has_unscored: Whether all outputs are given, those that are scored first.
            with_own: Whether layers with a forward of their own are taken, too: they are written
                as torch computes them, around placeholders of their inputs and weights.

        Raises:
            MissingDependencyError: If ``onnx`` or ``onnxscript`` is not installed.
            ModelError: If torch cannot export the network (says which operator), or a layer is
                computed in its own way and that was not asked for.
        """
        require_onnx()
        check_batch_size(batch_size)
        _check_numbers(network)
        # Where rows change each other's outputs or examples lie along another axis, a run is not
        # the first rows.
        data = network.examples(data)
        # The first batch alone: all shapes are fixed by its examples.
        first = data.first().to(network.device)
        if first.size < batch_size:
            raise ModelError(f"the first batch has {first.size} examples, not {batch_size}")
        batch = first.slice(0, batch_size)
        # Over all the data: a range from a few examples would clip the others.
        ranges = _output_ranges(network, data)
        shown = first.slice(0, max(min(NUM_SAMPLES, first.size), batch_size))
        samples, _ = _observe(network, shown)
        inputs, shapes = _observe(network, batch)
        _check_batched(network, inputs)
        own = _computed_by_torch(network, batch)
        if own and not with_own:
            raise ModelError(
                "layers with a forward of their own, or called with an output_size, are no ONNX "
                f"operators: {', '.join(own)}; leave them out (--exclude)"
            )
        graph = _export(network, batch, shapes, has_unscored, own)
        feeds = feeds_of([value.name for value in graph.graph.input], batch)
        return cls(graph, network, batch, feeds, inputs, samples, ranges, has_unscored)

    def outputs(self, output: Any) -> dict[str, Tensor]:
        """Of what the network returns the tensors that the graph gives, by their names there."""
        return _outputs(output, self.network.metric, self.has_unscored)

    @property
    def missed(self) -> tuple[str, ...]:
        """Layers that the example does not reach: the graph has no place for them."""
        return tuple(x.name for x in self.network.layers if x.name not in self.layer_inputs)


def feeds_of(names: Sequence[str], batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a batch, nested ones too, by the names of a graph's inputs.

    Args:
        names: In the order of the arguments, as the exporter has them.
        batch: Inputs of one run.

    Raises:
        ModelError: If the graph has more or fewer inputs than the batch has tensors.
    """
    tensors = batch.tensors
    if len(names) != len(tensors):
        raise ModelError(
            f"the ONNX graph has {len(names)} inputs ({', '.join(names)}), the network reads "
            f"{len(tensors)} tensors: what is missing would be a constant of the file"
        )
    return {name: x.cpu().numpy() for name, x in zip(names, tensors, strict=True)}


def check_batch_size(batch_size: int) -> None:
    """Refuses what is no number of examples.

    Raises:
        InputError: If it is below 1.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is at least 1; got {batch_size}")


def require_onnx() -> None:
    """Makes sure that graphs can be made.

    Raises:
        MissingDependencyError: If ``onnx`` or ``onnxscript`` is not installed, or torch is too old.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX graphs need {error.name}: pip install 'mpq[onnx]'"
        ) from error
    # Placeholders are made by `torch.onnx.ops.symbolic`.
    if not hasattr(torch.onnx, "ops"):
        raise MissingDependencyError(
            f"ONNX graphs need torch 2.8 or later, this is {torch.__version__}: "
            "pip install 'mpq[onnx]'"
        )


def _check_numbers(network: Network) -> None:
    """Refuses what is not float32, as the graph around the layers is."""
    for layer in network.layers:
        dtype = network.weight(layer.name).dtype
        if dtype != torch.float32:
            raise ModelError(
                f"layer {layer.name!r} is in {str(dtype).removeprefix('torch.')}, and ONNX graphs "
                "are made in float32: export model.float(), with examples to match"
            )


def _check_batched(network: Network, inputs: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Refuses convolutions of single images ``[C, H, W]``, which ONNX has not."""
    for layer in network.layers:
        ndim = len(layer.weight_shape)
        if "conv" in layer.kind and any(x.ndim < ndim for x in inputs.get(layer.name, ())):
            raise ModelError(
                f"layer {layer.name!r} reads an input without a batch axis, which ONNX's "
                "convolutions cannot: give it x[None]"
            )


def _outputs(output: Any, metric: OutputMetric, has_unscored: bool) -> dict[str, Tensor]:
    return compared_tensors(output, metric) if has_unscored else scored_tensors(output, metric)


class _Scored(nn.Module):
    """The network with the outputs that mpq compares: logits, without caches."""

    def __init__(self, module: nn.Module, metric: OutputMetric, has_unscored: bool) -> None:
        super().__init__()
        self.has_unscored = has_unscored
        self.module = module
        self.metric = metric

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """These tensors."""
        output = self.module(*args, **kwargs)
        return tuple(_outputs(output, self.metric, self.has_unscored).values())


class _Placeholder(nn.Module):
    """Stands for a layer while the network is exported; its parameters may be read elsewhere."""

    def __init__(
        self, name: str, shapes: Mapping[Shape, Shape], layer_module: nn.Module, is_kept: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.shapes = shapes
        if is_kept:  # by its owner, where it has the name of this very module: no parameter here
            vars(self)["weight"] = layer_module.weight
        else:
            self.weight, self.bias = layer_module.weight, getattr(layer_module, "bias", None)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The placeholder in the graph."""
        x = input_of(args, kwargs)
        assert x is not None  # a plain layer, which reads a tensor
        if tuple(x.shape) not in self.shapes:
            # A RuntimeError, as all that the exporter refuses.
            raise RuntimeError(
                f"layer {self.name!r} reads {tuple(x.shape)}, which it does not on the example"
            )
        # torch cannot infer what an operator that it does not know gives: shapes are observed ones.
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{PLACEHOLDER}",
            (x,),
            {"layer": self.name},
            dtype=torch.float32,
            shape=self.shapes[tuple(x.shape)],
            version=1,
        )


def _export(
    network: Network,
    batch: Batch,
    shapes: Mapping[str, Mapping[Shape, Shape]],
    has_unscored: bool,
    own: Sequence[str],
) -> "onnx.ModelProto":
    module = _Scored(_opened(network, shapes, own), network.metric, has_unscored)
    names = output_names(network.metric)
    if has_unscored and network.unscored:
        with torch.no_grad():
            names = list(
                _outputs(network.module(*batch.args, **batch.kwargs), network.metric, True)
            )
    args = batch.args
    # The exporter takes a dict at the end for inputs by name; then these are none.
    if args and isinstance(args[-1], dict) and not batch.kwargs:
        args = (*args, {})
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                args,
                kwargs=dict(batch.kwargs),
                # The other exporter traces and does not know `symbolic`.
                dynamo=True,
                verbose=False,
                output_names=names,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise ModelError(f"{refusal(error, module)}{_unseen(shapes)}") from error
    assert program is not None
    graph = program.model_proto
    # Every node has the source lines that it came from, with paths of this machine.
    for node in graph.graph.node:
        del node.metadata_props[:]
    return graph


def _unseen(shapes: Mapping[str, Mapping[Shape, Shape]]) -> str:
    """Layers that are likely to be why: those that only other examples reach."""
    names = [name for name, seen in shapes.items() if not seen]
    return f" (the example does not reach {', '.join(names)})" if names else ""


def _opened(
    network: Network, shapes: Mapping[str, Mapping[Shape, Shape]], own: Sequence[str]
) -> nn.Module:
    """A copy of the network with placeholders for its layers, under all names that a layer has."""
    # A copy of the modules, not of the numbers: the network keeps its layers.
    module = share_parameters(network.module)
    kept = {id(part) for part in opened_parts(module)}
    placeholders: dict[int, nn.Module] = {}
    for name in shapes:
        part = module.get_submodule(name)
        placeholders[id(part)] = (
            OwnLayer(name, part)
            if name in own
            else _Placeholder(name, shapes[name], part, id(part) in kept)
        )
    for path, layer_module in list(module.named_modules(remove_duplicate=False)):
        placeholder = placeholders.get(id(layer_module))
        # A network that is one layer has no parent to set it in.
        if placeholder is not None and not path:
            return placeholder
        if placeholder is not None:
            parent, _, leaf = path.rpartition(".")
            setattr(module.get_submodule(parent), leaf, placeholder)
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about itself."""
    import logging

    # By logger and restored afterwards, as levels are the whole process's.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    # Beside its error torch prints the graph as far as it came, hundreds of lines.
    with warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _observe(
    network: Network, batch: Batch
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, dict[Shape, Shape]]]:
    inputs: dict[str, tuple[Tensor, ...]] = {}
    shapes: dict[str, dict[Shape, Shape]] = {layer.name: {} for layer in network.layers}

    def see(name: str, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        x = read_by(args, kwargs, output)
        # A copy, as an operation in place may change the tensor after the layer has read it.
        inputs[name] = (*inputs.get(name, ()), x.detach().clone())
        shapes[name][tuple(x.shape)] = tuple(output.shape)

    layer_modules = ((name, network.layer_module(name)) for name in shapes)
    with (
        hooks(
            [m.register_forward_hook(partial(see, n), with_kwargs=True) for n, m in layer_modules]
        ),
        torch.no_grad(),
    ):
        network.outputs(batch)
    return inputs, shapes


def _computed_by_torch(network: Network, batch: Batch) -> list[str]:
    """Layers that no operator stands for: of their own forward, or whose call says a size."""
    found = {layer.name for layer in network.layers if layer.has_own_forward}

    def see(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        # Of the plain classes transposed convolutions alone take another argument.
        if len(args) + len(kwargs) > 1:
            found.add(name)

    modules = [(layer.name, network.layer_module(layer.name)) for layer in network.layers]
    handles = [m.register_forward_pre_hook(partial(see, n), with_kwargs=True) for n, m in modules]
    with hooks(handles), torch.no_grad():
        network.outputs(batch)
    return [name for name, _ in modules if name in found]


def _output_ranges(network: Network, data: Calibration) -> dict[str, tuple[float, float]]:
    ends: dict[str, list[npt.NDArray[np.float64]]] = {layer.name: [] for layer in network.layers}

    def see(name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        # An expert may be called with no rows at all, which have no range.
        if output.numel():
            # Two numbers per call, so that no output is kept over the calibration examples.
            low, high = output.detach().aminmax()
            ends[name].append(np.array([float(low), float(high)]))

    layer_modules = ((name, network.layer_module(name)) for name in ends)
    with (
        hooks([m.register_forward_hook(partial(see, n)) for n, m in layer_modules]),
        torch.no_grad(),
    ):
        for batch in network.batches(data):
            network.outputs(batch)
    return {
        name: (float(np.min(seen, axis=0)[0]), float(np.max(seen, axis=0)[1]))
        for name, seen in ends.items()
        if seen
    }
