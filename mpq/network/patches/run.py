"""The network's own forward pass, whose first operations run patch by patch."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from mpq.errors import ModelError
from mpq.network.arguments import tensors_in
from mpq.network.examples import Batch
from mpq.network.modules import check_model, device_of
from mpq.network.patches.chain import Chain
from mpq.network.patches.operations import WindowedOperation, Windows
from mpq.network.patches.outliers import OutlierPatches
from mpq.network.patches.plan import PatchPlan
from mpq.network.patches.recording import Record, is_idle
from mpq.network.patches.windows import patches_of, whole_channels
from mpq.network.same_start import own_inputs


def run_in_patches(
    model: nn.Module, data: Any, plan: PatchPlan, outliers: OutlierPatches | None = None
) -> Any:
    """What the network returns, computed by a plan: up to its cut patch by patch, then as a whole.

    Operations before the cut are put off as the network's own ``forward`` comes to them. At the cut
    every patch goes through all of them alone, reading what it needs of the input; real padding is
    there only at the borders of the image. In exact arithmetic the answer is that of the network.

    Args:
        model: In evaluation mode; left as found.
        data: Inputs, as ``Batch.of`` takes them.
        plan: Of this network, at images of this size; or of the one that was quantized to it.
        outliers: Which patches run in another network up to the cut; ``None``: none.

    Raises:
        ModelError: If the network does other operations than when the plan was made.
    """
    check_model(model)
    batch = Batch.of(data).to(device_of(model))
    if outliers is None:
        return _run(model, batch, plan)[0]
    check_model(outliers.network)
    _, of_outliers = _run(outliers.network, batch, plan)
    return _run(model, batch, plan, outliers, of_outliers)[0]


def _run(
    model: nn.Module,
    batch: Batch,
    plan: PatchPlan,
    outliers: OutlierPatches | None = None,
    of_outliers: Tensor | None = None,
) -> tuple[Any, Tensor]:
    """What the network returns, and the output of the cut."""
    own = Batch(*own_inputs(batch.args, batch.kwargs))
    running = _Running(own, plan, outliers, of_outliers)
    with torch.no_grad(), running.naming(model), running:
        found = model(*own.args, **own.kwargs)
    running.check(tensors_in(found))
    return found, running.output


def largest_difference(model: nn.Module, data: Any, plan: PatchPlan) -> float:
    """How far any output by patches is from the network's, relative to its largest output.

    Raises:
        ModelError: See ``run_in_patches``.
    """
    batch = Batch.of(data).to(device_of(model))
    by_patches = tensors_in(run_in_patches(model, batch, plan))
    args, kwargs = own_inputs(batch.args, batch.kwargs)
    with torch.no_grad():
        whole = tensors_in(model(*args, **kwargs))
    found = 0.0
    for one, other in zip(by_patches, whole, strict=True):
        size = float(other.abs().max()) if other.numel() else 0.0
        if size:
            found = max(found, float((one - other).abs().max()) / size)
    return found


class _Running(TorchDispatchMode):
    """Puts operations off until the cut, and does them there for one patch after another."""

    def __init__(
        self,
        batch: Batch,
        plan: PatchPlan,
        outliers: OutlierPatches | None = None,
        of_outliers: Tensor | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = Record(batch)
        self._inputs = batch.tensors
        self._plan = plan
        self._outliers = outliers
        self._of_outliers = of_outliers
        self._output: Tensor | None = None
        self._kept: Tensor | None = None

    @property
    def output(self) -> Tensor:
        """Of the cut, ``[N, C, H, W]``, as it was made."""
        assert self._kept is not None
        return self._kept

    @property
    def _is_done(self) -> bool:
        return self._output is not None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it away from here: several seconds.
        return False

    def naming(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within this block operations have the names by which cuts are known."""
        return self._record.naming(model)

    def check(self, tensors: Sequence[Tensor]) -> None:
        """That the cut was reached, and nothing is read of what was put off but its output."""
        put_off = (x for x in self._record.dependent(tensors) if not self._is_output(x))
        if not self._is_done or any(True for _ in put_off):
            raise ModelError(self._plan.is_of_others)

    def _is_output(self, x: Tensor) -> bool:
        assert self._output is not None
        return x.untyped_storage().data_ptr() == self._output.untyped_storage().data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in([args, kwargs])
        if self._is_done:
            self.check(given)
        if self._is_done or not self._record.dependent(given) or func.is_view or is_idle(func):
            result = func(*args, **kwargs)
        else:
            result = _empty(func, args, kwargs)
        if not self._is_done:
            self._record.write(func, args, kwargs, result)
            self._do_at_cut(result)
        return result

    def _do_at_cut(self, result: Any) -> None:
        operations = self._record.operations
        if operations and isinstance(operations[-1].windowed, str):
            raise ModelError(self._plan.is_of_others)
        # By name and not by place: a quantized network does more on the way to the same module.
        if not operations or operations[-1].name != self._plan.cut:
            return
        out = tensors_in(result)[0]
        recorded = self._record.recorded([out])
        made = recorded.images[operations[-1].writes[0]]
        self._plan.check_shape(made.shape)
        self._output = out
        # Numbers may lie in one row at the cut, where a quantized layer rounds what it reads.
        out = out.view(-1, *self._plan.shape)
        chain = Chain(recorded, len(operations), "", (len(operations) - 1,))
        plane = (self._plan.shape[1], self._plan.shape[2])
        for patch in patches_of(plane, self._plan.num_patches):
            out[whole_channels(patch)] = self._patch(chain, patch)
        # A copy, as the network may go on in place.
        self._kept = out.clone()

    def _patch(self, chain: Chain, patch: Windows) -> Tensor:
        """One window of the output, each example's by the network of its class."""
        windows = chain.windows(chain.length - 1, patch)
        window = _patch(chain, self._inputs, windows)
        if self._outliers is None or self._of_outliers is None:
            return window
        read = self._inputs[0][whole_channels(windows[0])]
        is_other = self._outliers.has_outliers(read)[:, None, None, None]
        return torch.where(is_other, self._of_outliers[whole_channels(patch)], window)


def _patch(chain: Chain, inputs: Sequence[Tensor], windows: dict[int, Windows]) -> Tensor:
    """One window of the output of a chain's last operation, from windows of the inputs.

    Args:
        chain: Ends with that operation.
        inputs: Of the network, whole.
        windows: See ``Chain.windows``.
    """
    held = {
        image: x[whole_channels(windows[image])]
        for image, x in enumerate(inputs)
        if image in windows
    }
    for operation in chain.recorded.operations:
        image = operation.writes[0]
        if image not in windows:
            continue  # nobody reads it
        at = windows[image]
        how = operation.windowed
        plane = chain.recorded.images[image].plane
        assert isinstance(how, WindowedOperation)
        assert plane is not None
        read = [
            _needed(held[each], how, windows[each], at, chain, each) for each in operation.reads
        ]
        held[image] = how.run(read, at, plane)
    return held[image]


def _needed(
    x: Tensor, how: WindowedOperation, held: Windows, at: Windows, chain: Chain, image: int
) -> Tensor:
    """What an operation reads for a window of its output, with padding past the image's borders."""
    plane = chain.recorded.images[image].plane
    assert plane is not None
    pads: list[int] = []
    for axis in (1, 0):  # as torch pads: the last axis first
        needed = how.readings[axis].needed(at[axis])
        real = needed.within(plane[axis])
        own = real.seen_from(held[axis])
        x = x.narrow(axis + 2, own.start, len(own))
        pads += [real.start - needed.start, needed.stop - real.stop]
    return F.pad(x, pads, value=how.fill) if any(pads) else x


def _empty(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation returns, without its numbers."""
    # In place: the very tensor, whose numbers are put off already.
    if func._schema.is_mutable:
        return args[0]
    device = tensors_in([args, kwargs])[0].device
    on_meta = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, (args, kwargs))
    made = func(*on_meta[0], **on_meta[1])
    return tree_map(
        lambda x: torch.empty_like(x, device=device) if isinstance(x, Tensor) else x, made
    )
