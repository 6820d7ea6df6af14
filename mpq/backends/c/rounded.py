"""The simulation with what a microcontroller rounds beside the layers: sums and shortcuts, too."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Node, map_arg

from mpq.backends.c.formats import Grids, formats_of_others, known_grids, measured_grid
from mpq.backends.c.reading import constants, read_steps
from mpq.backends.c.steps import Steps
from mpq.backends.layerwise import OUTPUT
from mpq.errors import InputError
from mpq.network.examples import Batch
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.grid import Grid
from mpq.quantization.input_sample import SAMPLES_PER_BATCH
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import RANGE_METHODS

VIEWS: Final = ("view", "reshape", "_unsafe_view")
"""Operations that are told a whole shape."""
OF_LARGEST: Final = 1e-3
"""How far the network's output may be from what its last step is given, of its largest number."""


@final
class Rounded(nn.Module):
    """A network whose layers compute in their precisions, and whose tensors are all stored.

    Args:
        program: The network with its original weights.
        layers: Of the assignment, by name.
        quantizer: Rounds as the simulation does.
        modules: Name to module of the layers.
    """

    def __init__(
        self,
        program: ExportedProgram,
        layers: Mapping[str, AssignedLayer],
        quantizer: Quantizer,
        modules: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self._program, self._layers, self._quantizer = program, layers, quantizer
        self._modules_by_name = dict(modules)
        known = constants(program)
        vectors = {n for n, x in known.items() if x.ndim == 1 and x.is_floating_point()}
        self._constants = {n: x for n, x in known.items() if n not in vectors}
        # Parameters, as others take their place where it is asked how far ties move the output.
        self.vectors = nn.ParameterDict(
            {n: nn.Parameter(known[n].detach(), requires_grad=False) for n in sorted(vectors)}
        )
        self.steps: Steps = read_steps(program)
        self.grids: Grids = known_grids(self.steps, layers)
        self._weights: dict[str, Tensor] = {}

    def calibrate(self, batches: Iterable[Batch], method: str) -> None:
        """Chooses the grids of tensors that no layer reads, by running examples.

        Args:
            batches: Examples, one after the other.
            method: As ``RANGE_METHODS`` takes it.
        """
        chosen = RANGE_METHODS.build(method)
        wanted = formats_of_others(self.steps, self._layers, self.grids)
        samples: dict[str, list[Tensor]] = {name: [] for name in wanted}
        draws = torch.Generator().manual_seed(0)

        def observe(name: str, value: Tensor) -> Tensor:
            if name in samples:
                numbers = value.detach().flatten().float()
                if chosen.reads_extremes_only:
                    numbers = torch.stack(numbers.aminmax())
                elif len(numbers) > SAMPLES_PER_BATCH:
                    drawn = torch.randint(len(numbers), (SAMPLES_PER_BATCH,), generator=draws)
                    numbers = numbers[drawn]
                samples[name].append(numbers)
            return self._on_grid(name, value)

        if wanted:
            for batch in batches:
                self._run(one_tensor(batch).cpu(), observe)
        for name, tensor_format in wanted.items():
            number, symmetric = tensor_format.number, tensor_format.symmetric

            def ends(rows: Tensor, number: Any = number, symmetric: bool = symmetric) -> Any:
                return chosen.ends(rows, number, symmetric)

            self.grids[name] = measured_grid(torch.cat(samples[name]), tensor_format, ends)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's output for a batch."""
        return self._run(one_tensor(Batch(args, kwargs)).cpu(), self._on_grid)

    def first_apart(self, batch: Batch, found: Mapping[str, Tensor]) -> str:
        """See ``Stepwise.first_apart``: of what the compiled step before has made.

        Each step may be one code off, as a number may lie between two; the network's output, which
        has no such codes, ``OF_LARGEST``.
        """
        makers, apart = self.steps.makers, list[str]()

        def compared(name: str, value: Tensor) -> Tensor:
            expected, there = self._on_grid(name, value), found[OUTPUT + name].view_as(value)
            why = _apart(expected, there, self.grids.get(name))
            if why:
                apart.append(f"the first one whose output differs is {makers[name]}, by {why}")
            return there

        self._run(one_tensor(batch).cpu(), compared)
        return next(iter(apart), "")

    @torch.no_grad()
    def _run(self, x: Tensor, stored: Callable[[str, Tensor], Tensor]) -> Tensor:
        values: dict[str, Any] = {**self._constants, **self.vectors}
        values[self.steps.reads] = stored(self.steps.reads, x)
        by_name = {step.makes: step for step in self.steps.steps}
        layers = {
            f"{name}.weight": name for name in (step.layer for step in self.steps.steps) if name
        }
        parameters = self._program.graph_signature.inputs_to_parameters
        output = None
        for node in self._program.graph.nodes:
            if node.op != "call_function":
                continue
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n.name])
            args = list(args)
            if isinstance(node.target, OpOverload) and node.target._opname in VIEWS:
                # The graph is of one example.
                args[1] = [len(x), *node.meta["val"].shape[1:]]
            weight = node.args[1] if len(node.args) > 1 else None
            layer = (
                layers.get(parameters.get(weight.name, "")) if isinstance(weight, Node) else None
            )
            if layer is not None:
                args[:2] = self._rounded(layer, args[0])
            value = node.target(*args, **kwargs)
            # Only what a step makes is stored: not a sum on its way into a ReLU.
            values[node.name] = stored(node.name, value) if node.name in by_name else value
            output = values[node.name]
        assert isinstance(output, Tensor)
        return output

    def _rounded(self, name: str, x: Tensor) -> list[Tensor]:
        """A layer's input and weight in its precision."""
        layer, module = self._layers[name], self._modules_by_name[name]
        if name not in self._weights:
            self._weights[name] = self._quantizer.weight(name, module, layer.precision.weight)
        read = self._quantizer.activation(name, module, x, layer.precision.activation)
        return [read, self._weights[name]]

    def _on_grid(self, name: str, value: Tensor) -> Tensor:
        grid = self.grids.get(name)
        return value if grid is None else grid.round(value.reshape(1, -1)).view_as(value)


def _apart(expected: Tensor, found: Tensor, grid: Grid | None) -> str:
    """How far two tensors are from each other, if by more than a tie; empty where they are not."""
    difference, largest = float((expected - found).abs().max()), float(expected.abs().max())
    # A comparison with nan is false.
    if grid is None:
        is_near = difference <= OF_LARGEST * largest
        return "" if is_near else f"{difference:.3g} (its largest number is {largest:.3g})"
    codes = difference / float(grid.scale)
    return "" if codes < 1.5 else f"{difference:.3g}, {codes:.0f} codes"


def one_tensor(batch: Batch) -> Tensor:
    """The only input of a network.

    Raises:
        InputError: If there are several, or none that is a tensor of numbers.
    """
    given = [x for x in (*batch.args, *batch.kwargs.values()) if x is not None]
    if len(given) != 1 or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
        raise InputError("c: its networks read one tensor of numbers, and the examples have others")
    return given[0]
