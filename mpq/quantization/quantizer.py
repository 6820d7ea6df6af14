"""Quantizing a network's layers: the one mechanism behind estimators and backend."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mpq._support.pages import release_arrays
from mpq.errors import MismatchError
from mpq.network.arguments import input_of, with_input
from mpq.network.mapped import release
from mpq.network.modules import weight_of
from mpq.network.network import Network
from mpq.network.own_forward import is_computed_again
from mpq.network.weight_layout import layout_of
from mpq.quantization.blocks import block_of, round_blocks
from mpq.quantization.branch_fits import rehearsed, with_branches
from mpq.quantization.codes import Codes
from mpq.quantization.error_form import ErrorForm
from mpq.quantization.grid import Grid
from mpq.quantization.input_rounding import rounded_input
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.observer import ActivationRanges, RoundsInputs
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.rounded_in_calls import RoundedInCalls
from mpq.quantization.rounding import quantize_some, row_tiles, weight_grid
from mpq.quantization.running_clusters import RunningClusters
from mpq.quantization.step_cases import step_cases
from mpq.quantization.stored import StoredWeight, of_channels
from mpq.quantization.straight_through import straight_through
from mpq.quantization.tensor_format import TensorFormat
from mpq.quantization.tied_scales import tied_grids


@final
@dataclass(frozen=True, eq=False)
class Quantizer:
    """How one network's weights and activations are quantized.

    Args:
        ranges: Calibrated ranges of static activation formats.
        weight_range: How a weight's range is chosen, as ``RANGE_METHODS`` takes it.
        numerics: How scales are stored and tokens rounded where the numbers run.
        stored: Weights that were rounded with regard to data; all others are rounded to nearest.
        shared: Layers whose weight is that of another one (``Network.shared_weights``), and which:
            its range is searched for once.
        steps: Which cluster of steps every example that runs is in, where ranges are by cluster.
        is_rehearsal: Whether it is only seen how long it takes (``rehearsed``).
    """

    ranges: ActivationRanges
    weight_range: str = "mse"
    numerics: Numerics = OWN
    stored: Mapping[tuple[str, TensorFormat], StoredWeight] = field(
        default_factory=dict, repr=False
    )
    shared: Mapping[str, str] = field(default_factory=dict, repr=False)
    steps: RunningClusters | None = field(default=None, repr=False)
    is_rehearsal: bool = False
    _grids: dict[tuple[str, TensorFormat], Grid] = field(default_factory=dict, repr=False)
    _checked: set[str] = field(default_factory=set, repr=False)
    _fitted: dict[tuple[str, TensorFormat], StoredWeight] = field(default_factory=dict, repr=False)

    def weight(
        self,
        name: str,
        layer_module: nn.Module,
        tensor_format: TensorFormat,
        original: Tensor | None = None,
    ) -> Tensor:
        """The layer's weight after storing it in a format, in its own shape.

        ``original`` is the weight where the site holds another one, as within ``quantized``.
        The search for its range is done once per layer and format; the scales are kept.
        """
        weight = (weight_of(layer_module) if original is None else original).detach()
        if tensor_format.is_exact or not weight.numel():  # a cache has none
            return weight
        layout = layout_of(layer_module)
        rows = layout.to_rows(weight)
        found = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        for some in row_tiles(rows):
            found[some] = self.rounded_rows(name, rows, tensor_format, some)
        release([weight])
        return layout.from_rows(found, tuple(weight.shape))

    def rounded_rows(
        self,
        name: str,
        rows: Tensor,
        tensor_format: TensorFormat,
        some: slice | Tensor,
        work: Tensor | None = None,
    ) -> Tensor:
        """Some channels ``[r, K]`` of a weight after storing it in a format, in its dtype.

        Args:
            name: The layer's.
            rows: The whole original weight ``[O, K]``.
            tensor_format: Any format of weights.
            some: Which channels.
            work: Memory of ``r K`` float32 that may be used; see ``mpq.quantization.grid.Grid``.
        """
        stored = self._stored(name, rows, tensor_format)
        if stored is None and tensor_format.channels is not None:
            return self._by_channel(name, rows, tensor_format, some)
        if stored is None:
            grid = self._grid(name, rows, tensor_format)
            return quantize_some(rows, some, tensor_format, grid, work)
        index = some if isinstance(some, slice) else some.cpu().numpy()
        part = stored.part(index)
        numbers = Codes.of_stored(part, tensor_format).numbers()
        # Of single rows a copy was made.
        release_arrays((part if isinstance(some, slice) else stored).parts().values())
        return numbers.to(rows.device, rows.dtype)

    def _by_channel(
        self, name: str, rows: Tensor, tensor_format: TensorFormat, some: slice | Tensor
    ) -> Tensor:
        """Some channels, each in its own format."""
        assert tensor_format.channels is not None
        tensor_format.channels.check_weight(name, *rows.shape)
        if tensor_format.is_coupled:
            return self._by_input(name, rows, tensor_format, some)
        every = torch.arange(len(rows), device=rows.device)[some]
        columns = torch.from_numpy(tensor_format.channels.columns).to(rows.device)[every]
        found = torch.empty(len(every), rows.shape[1], dtype=rows.dtype, device=rows.device)
        for column, own in enumerate(tensor_format.by_channel):
            here = columns == column
            if here.any():
                found[here] = self.rounded_rows(name, rows, own, every[here])
        return found

    def _by_input(
        self, name: str, rows: Tensor, tensor_format: TensorFormat, some: slice | Tensor
    ) -> Tensor:
        """Some channels, whose inputs or groups are each in their own format."""
        assert tensor_format.channels is not None
        cells = torch.from_numpy(tensor_format.channels.cells).to(rows.device)
        cells = cells if len(cells) == 1 else cells[some]
        found = rows[some].clone()
        pairs = zip(
            tensor_format.by_channel, self.own_grids(name, rows, tensor_format), strict=True
        )
        for column, (own, grid) in enumerate(pairs):
            found = torch.where(cells == column, quantize_some(rows, some, own, grid), found)
        return found

    def own_grids(self, name: str, rows: Tensor, tensor_format: TensorFormat) -> list[Grid]:
        """``[F]`` as ``grid``, of the widths of inputs or groups."""
        grids = [self.grid(name, rows, own) for own in tensor_format.by_channel]
        is_tied = tensor_format.has_tied_scales
        return tied_grids(tensor_format, grids, self.numerics) if is_tied else grids

    def codes(self, name: str, layer_module: nn.Module, tensor_format: TensorFormat) -> Codes:
        """What a weight is stored as, in a format that needs a scale.

        Args:
            name: The layer's, under which the search for its range is kept.
            layer_module: Its module, which holds the original weight.
            tensor_format: One that needs a scale.
        """
        weight = weight_of(layer_module).detach()
        rows = layout_of(layer_module).to_rows(weight)
        stored = self._stored(name, rows, tensor_format)
        if stored is None and tensor_format.channels is not None:
            tensor_format.channels.check_weight(name, *rows.shape)
            own = tensor_format.by_channel
            if tensor_format.is_coupled:
                grids = self.own_grids(name, rows, tensor_format)
                parts = [Codes.of(rows, *each) for each in zip(own, grids, strict=True)]
            else:
                parts = [self.codes(name, layer_module, each) for each in own]
            return Codes.of_channels(parts, tensor_format)
        if stored is not None:
            found = Codes.of_stored(stored, tensor_format)
            release_arrays(stored.parts().values())
        else:
            found = Codes.of(rows, tensor_format, self.grid(name, rows, tensor_format))
        release([weight])
        return found

    def grid(self, name: str, rows: Tensor, tensor_format: TensorFormat) -> Grid:
        """The grid that a weight ``[O, K]`` is rounded to nearest on, in a format with a scale."""
        found = self._grid(name, rows, tensor_format)
        assert found is not None
        return found

    def _stored(self, name: str, rows: Tensor, tensor_format: TensorFormat) -> StoredWeight | None:
        """Codes that were found before, or with a branch; refuses those of another weight."""
        stored = self.stored.get((name, tensor_format))
        if stored is None and tensor_format.is_coupled:
            known = ((name, own) in self.stored for own in tensor_format.by_channel)
            assert not any(known), "codes that fit data hang together along a row"
        if stored is None and tensor_format.branch is not None:
            return self._of_branch(name, rows, tensor_format)
        if stored is not None and name not in self._checked:
            if not stored.is_of(rows[some].float().cpu().numpy() for some in row_tiles(rows)):
                raise MismatchError(
                    f"layer {name!r}: its codes were rounded from another weight than this "
                    "network's (another checkpoint, or this one in another dtype?): search again "
                    "with this one"
                )
            self._checked.add(name)
        return stored

    def kept(
        self, name: str, layer_module: nn.Module, tensor_format: TensorFormat
    ) -> StoredWeight | None:
        """What an assignment keeps of a weight; ``None``: it is rounded to nearest again.

        Arguments are those of ``codes``, of any format.
        """
        if tensor_format.channels is not None and not tensor_format.is_coupled:
            return self._kept_channels(name, layer_module, tensor_format)
        if tensor_format.branch is None:
            return self.stored.get((name, tensor_format))
        rows = layout_of(layer_module).to_rows(weight_of(layer_module).detach())
        return self._stored(name, rows, tensor_format)

    def _kept_channels(
        self, name: str, layer_module: nn.Module, tensor_format: TensorFormat
    ) -> StoredWeight | None:
        stored = [self.stored.get((name, own)) for own in tensor_format.by_channel]
        if not any(stored):
            return None
        rows = layout_of(layer_module).to_rows(weight_of(layer_module).detach())
        # Of channels with few bits it may be that these alone are rounded to nearest.
        parts = (
            known or self.codes(name, layer_module, own).stored(rows)
            for known, own in zip(stored, tensor_format.by_channel, strict=True)
        )
        return of_channels([*parts], tensor_format)

    def _of_branch(self, name: str, rows: Tensor, tensor_format: TensorFormat) -> StoredWeight:
        """Codes to nearest of a weight ``[O, K]``, and a branch by the squared error of all."""
        tensor_format = rehearsed(tensor_format) if self.is_rehearsal else tensor_format
        key = (self.shared.get(name, name), tensor_format)
        if key not in self._fitted:
            self._fitted[key] = self._with_branch(rows, tensor_format)
        return self._fitted[key]

    @torch.no_grad()
    def _with_branch(self, rows: Tensor, tensor_format: TensorFormat) -> StoredWeight:
        rows, plain = rows.detach().float().cpu(), tensor_format.plain
        method = RANGE_METHODS.build(self.weight_range)

        def rounded(target: Tensor) -> Codes:
            return Codes.of(target, plain, weight_grid(target, plain, method, self.numerics))

        found = with_branches(rows, [tensor_format], ErrorForm(), rounded(rows), rounded)
        return found[0].stored(rows)

    def _grid(self, name: str, rows: Tensor, tensor_format: TensorFormat) -> Grid | None:
        # Not by the weight: a quantizer is of one network, whose original weights stay as they are.
        tensor_format = tensor_format.plain
        key = (self.shared.get(name, name), tensor_format)
        if tensor_format.number.needs_scale and key not in self._grids:
            method = RANGE_METHODS.build(self.weight_range)
            self._grids[key] = weight_grid(rows, tensor_format, method, self.numerics)
        return self._grids.get(key)

    def activation(
        self, name: str, layer_module: nn.Module, x: Tensor, tensor_format: TensorFormat
    ) -> Tensor:
        """The layer's input after storing it in a format; integers (token ids) and nothing stay."""
        if tensor_format.is_exact or not x.is_floating_point() or not x.numel():
            return x
        calibrated = self.ranges.of(name, tensor_format)
        rounding = partial(rounded_input, layer_module, self.numerics)
        cases = step_cases(tensor_format, calibrated)
        if not cases:
            return rounding(x, (tensor_format, calibrated))
        assert self.steps is not None  # who has such ranges knows the steps
        return self.steps.rounded(name, x, cases, rounding)

    def float_block(self, precision: Precision, num_inputs: int) -> int | None:
        """Numbers of a block in which the target rounds an input that the precision leaves alone.

        ``None``: it rounds none. Estimators do not see this rounding; measurements do.
        """
        weight, is_llama = precision.weight, self.numerics.float_inputs == "llama.cpp"
        is_rounded = weight.is_scaled_integer or weight.number.is_microscaling
        if not is_llama or not precision.activation.is_exact or not is_rounded:
            return None
        return block_of(weight, num_inputs)


def install(
    module: nn.Module, precisions: Mapping[str, Precision], quantizer: Quantizer
) -> list[RemovableHandle]:
    """Makes the named layers compute in their precisions, in place: new weights, hooked inputs.

    Returns:
        The input hooks' handles.
    """
    # All weights first: rounding one may fail, and then no hook is left on the network.
    for name, precision in precisions.items():
        layer_module = module.get_submodule(name)
        if not precision.weight.is_exact:
            weight = quantizer.weight(name, layer_module, precision.weight)
            # A new parameter, because the old one's memory belongs to the user's model.
            layer_module.weight = nn.Parameter(weight, requires_grad=False)
    return round_inputs(module, precisions, quantizer)


def round_inputs(
    module: nn.Module, precisions: Mapping[str, Precision], quantizer: Quantizer
) -> list[RemovableHandle]:
    """Hooks the inputs of the named layers, in place.

    Returns:
        The hooks' handles.
    """
    return [
        module.get_submodule(name).register_forward_pre_hook(
            QuantizeInput(name, quantizer, precision), with_kwargs=True
        )
        for name, precision in precisions.items()
        if not precision.activation.is_exact or quantizer.numerics.float_inputs != "float"
    ]


@final
@dataclass(frozen=True, eq=False)
class QuantizeInput(RoundsInputs):
    """Forward pre-hook that quantizes what a layer reads (``mpq.network.arguments.input_of``)."""

    name: str
    quantizer: Quantizer
    precision: Precision

    def __call__(
        self, layer_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The layer's arguments, its input quantized; gradients pass straight through."""
        x = input_of(args, kwargs)
        # Ids and shapes stay, and so does what was rounded before the call is computed again.
        if x is None or not x.is_floating_point() or is_computed_again(layer_module):
            return None
        rounded = self._rounded(layer_module, x)
        # Rounding has the derivative 0 almost everywhere: gradients would end here.
        if torch.is_grad_enabled() and x.requires_grad:
            rounded = straight_through(x, rounded)
        return with_input(args, kwargs, rounded)

    def _rounded(self, layer_module: nn.Module, x: Tensor) -> Tensor:
        block = self.quantizer.float_block(self.precision, x.shape[-1])
        if block is not None:
            return round_blocks(x, block)
        return self.quantizer.activation(self.name, layer_module, x, self.precision.activation)


@contextmanager
def quantized(
    network: Network,
    precisions: Mapping[str, Precision],
    quantizer: Quantizer,
    one_at_a_time: bool = False,
) -> Iterator[None]:
    """Within this block the network computes in these precisions; afterwards as before.

    Args:
        network: Whose layers they are.
        precisions: Layer name to precision.
        quantizer: Rounds.
        one_at_a_time: Whether a layer holds its rounded weight during its own calls only, for
            passes without gradients: memory for one layer, and every call rounds anew.
    """
    layer_modules = {name: network.layer_module(name) for name in precisions}
    # The parameters themselves, not their numbers: afterwards everybody's references hold again.
    originals = {name: weight_of(layer_module) for name, layer_module in layer_modules.items()}
    handles: list[RemovableHandle] = []
    try:
        # What functions read as well is there between calls, too.
        also_used = network.reach.also_used
        passing = {n: p for n, p in precisions.items() if one_at_a_time and n not in also_used}
        lasting = {n: p for n, p in precisions.items() if n not in passing}
        handles = install(network.module, lasting, quantizer)
        handles += round_inputs(network.module, passing, quantizer)
        for name, precision in passing.items():
            if not precision.weight.is_exact:
                rounded = partial(quantizer.weight, name, tensor_format=precision.weight)
                handles += RoundedInCalls(rounded).hooks(layer_modules[name])
        yield
    # Also after an error, in the user's own model for example: the network is used again.
    finally:
        for handle in handles:
            handle.remove()
        for name, layer_module in layer_modules.items():
            layer_module.weight = originals[name]
