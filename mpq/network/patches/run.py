"""The network's own forward pass, whose first operations run patch by patch."""

from collections.abc import Sequence
from itertools import product
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
from mpq.network.patches.plan import PatchPlan
from mpq.network.patches.recording import Record, is_idle
from mpq.network.patches.windows import parts
from mpq.network.same_start import own_inputs


def run_in_patches(model: nn.Module, data: Any, plan: PatchPlan) -> Any:
    """What the network returns, computed by a plan: up to its cut patch by patch, then as a whole.

    Operations before the cut are put off as the network's own ``forward`` comes to them. At the cut
    every patch goes through all of them alone, reading what it needs of the input; real padding is
    there only at the borders of the image. In exact arithmetic the answer is that of the network.

    Args:
        model: In evaluation mode; left as found.
        data: Inputs, as ``Batch.of`` takes them.
        plan: Of this network, at images of this size.

    Raises:
        ModelError: If the network does other operations than when the plan was made.
    """
    check_model(model)
    batch = Batch.of(data).to(device_of(model))
    batch = Batch(*own_inputs(batch.args, batch.kwargs))
    running = _Running(batch, plan)
    with torch.no_grad(), running:
        found = model(*batch.args, **batch.kwargs)
    running.check()
    return found


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

    def __init__(self, batch: Batch, plan: PatchPlan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = Record(batch)
        self._inputs = batch.tensors
        self._plan = plan
        self._is_done = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it away from here: several seconds.
        return False

    def check(self) -> None:
        """That the cut was reached."""
        if not self._is_done:
            raise ModelError(_other_operations(self._plan))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        depends = bool(self._record.dependent(tensors_in([args, kwargs])))
        if self._is_done or not depends or func.is_view or is_idle(func):
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
            raise ModelError(_other_operations(self._plan))
        if len(operations) <= self._plan.position:
            return
        out = tensors_in(result)[0]
        if tuple(out.shape[1:]) != self._plan.shape:
            raise ModelError(_other_operations(self._plan))
        self._is_done = True
        recorded = self._record.recorded([out])
        chain = Chain(recorded, len(operations), "", (self._plan.position,))
        rows, columns = (parts(size, self._plan.num_patches) for size in self._plan.shape[1:])
        for patch in product(rows, columns):
            window = out[:, :, patch[0].slice, patch[1].slice]
            window.copy_(_patch(chain, self._inputs, patch))


def _patch(chain: Chain, inputs: Sequence[Tensor], patch: Windows) -> Tensor:
    """One window of the output of a chain's last operation, from windows of the inputs."""
    windows = chain.windows(chain.length - 1, patch)
    held = {
        image: x[:, :, windows[image][0].slice, windows[image][1].slice]
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


def _other_operations(plan: PatchPlan) -> str:
    return (
        f"the network does other operations before {plan.cut} than when the patches were planned; "
        "plan them for it, with an example of the same size"
    )
