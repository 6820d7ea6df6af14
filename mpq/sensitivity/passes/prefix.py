"""Forward passes that do not compute again what a changed layer cannot change."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial, update_wrapper
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mpq.network.examples import Batch
from mpq.network.network import Network

# What cannot change once it is handed over. Anything else (a cache, say) might change unseen, so
# that calls which take or return it are run again.
CONSTANT = (
    bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device, Enum
)  # fmt: skip


@dataclass(eq=False)
class Call:
    """One call of a module's ``forward`` in a recorded pass.

    Args:
        module: The module whose ``forward`` was called.
        stop: Number of the first call that began after this one had ended.
        output: What it returned, if ``versions`` is not ``None``.
        versions: Version counters of the output's tensors when the call ended; ``None``: it must
            run again.
        is_copied: Whether the output is a copy, because the original is changed in place later.
    """

    module: nn.Module
    stop: int = 0
    output: Any = None
    versions: list[tuple[int, int]] | None = None
    is_copied: bool = False

    @property
    def is_overwritten(self) -> bool:
        """Whether the output has been changed in place since."""
        return self.versions is not None and _versions(self.output) != self.versions

    def played(self) -> Any:
        """The output, in containers of its own, which the caller may change."""
        return tree_map(_clone if self.is_copied else _same, self.output)


@final
@dataclass(frozen=True, eq=False)
class Recording:
    """A forward pass, with what every module returned.

    Args:
        batch: What the network read, on its device.
        outputs: ``[N, P, C]`` what the network answered, by position.
        calls: In the order in which they began.
    """

    batch: Batch
    outputs: Tensor
    calls: Sequence[Call]
    _first: Mapping[nn.Module, int] = field(init=False)

    def __post_init__(self) -> None:
        first: dict[nn.Module, int] = {}
        for number, call in enumerate(self.calls):
            first.setdefault(call.module, number)
        object.__setattr__(self, "_first", first)

    def first_call(self, layer_module: nn.Module) -> int | None:
        """Number of a module's first call; ``None`` if it is not called."""
        return self._first.get(layer_module)


@final
class PrefixReuse:
    """Records a network's passes, and runs it again from a changed layer on.

    Of a recorded pass, a call that had ended when the changed layer was first called is skipped:
    it returns what it returned then. A call is run again, and calls inside it are skipped instead,
    if it changes its inputs in place, takes or returns objects that may change unseen (a cache),
    returns a view of what is overwritten later, or something that the network differentiates by
    itself. The numbers are those of a whole pass, bit by bit,
    provided that a layer's weight is read by that layer's own calls only.

    Where the network draws (``Network.allow_randomness``) nothing is skipped: a call that is not
    run would not draw either, and what follows it would draw other numbers.

    A module may keep something between calls that another module reads. So that what it keeps is
    from the recording, change layers in the reverse order of their first calls.

    Get one from ``reusing``.

    Args:
        network: Its modules' ``forward`` is replaced.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._running: _Pass | None = None
        self._copied: set[nn.Module] = set()

    def record(
        self, batch: Batch, base: Recording | None = None, layer: str | None = None
    ) -> Recording:
        """A pass over a batch.

        Args:
            batch: On the network's device.
            base: A recording of the same batch from which the network now differs in one layer.
            layer: Name of that layer; without it, or without a base, nothing is skipped.
        """
        recording = self._recorded(batch, base, layer)
        overwritten = {call.module for call in recording.calls if call.is_overwritten}
        if not overwritten <= self._copied:  # once per network: from now on they are copied
            self._copied |= overwritten
            del recording  # its memory is needed
            recording = self._recorded(batch, base, layer)
        for call in recording.calls:
            if call.is_overwritten:
                call.versions = None
        return recording

    def outputs(self, recording: Recording, layer: str) -> Tensor:
        """Outputs ``[N, P, C]`` of the network as it is now, if only ``layer`` was changed."""
        if recording.first_call(self._network.layer_module(layer)) is None:
            return recording.outputs
        return self._run(recording.batch, self._after(recording, layer))

    def _after(self, recording: Recording, layer: str) -> "_Pass":
        if self._network.allow_randomness is not None:
            return _Pass([], 0)
        first = recording.first_call(self._network.layer_module(layer))
        return _Pass(recording.calls, len(recording.calls) if first is None else first)

    def _recorded(self, batch: Batch, base: Recording | None, layer: str | None) -> Recording:
        running = _Pass([], 0) if base is None or layer is None else self._after(base, layer)
        running.tape = []
        outputs = self._run(batch, running)
        return Recording(batch, outputs, running.tape)

    def _run(self, batch: Batch, running: "_Pass") -> Tensor:
        self._running = running
        try:
            # Tensors of inference mode do not tell when they are changed.
            with torch.inference_mode(False), torch.no_grad():
                return self._network.outputs(batch)
        finally:
            self._running = None

    def call(
        self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Stands in for a module's ``forward``."""
        running = self._running
        if running is None:
            return forward(*args, **kwargs)
        known = running.skipped(module)
        if known is not None:
            return known.played()
        if running.tape is None:
            return forward(*args, **kwargs)
        call = Call(module)
        running.tape.append(call)
        before = _versions((args, kwargs))
        output = forward(*args, **kwargs)
        call.stop = len(running.tape)
        # What a call writes into its inputs would be missing if only its output were played.
        is_pure = before is not None and before == _versions((args, kwargs))
        if is_pure and _versions(output) is not None and not _is_differentiated(output):
            self._keep(call, output, (args, kwargs))
        return output

    def _keep(self, call: Call, output: Any, inputs: Any) -> None:
        if call.module in self._copied:
            # A copy of a view no longer follows what is written to the input afterwards.
            if _share_memory(output, inputs):
                return
            call.is_copied, output = True, tree_map(_clone, output)
        call.output, call.versions = tree_map(_same, output), _versions(output)


class _Pass:
    """A pass that skips calls of a recorded one, up to call number ``end``."""

    def __init__(self, known: Sequence[Call], end: int) -> None:
        self.known = known
        self.end = end
        self.position = 0
        self.tape: list[Call] | None = None

    def skipped(self, module: nn.Module) -> Call | None:
        """The recorded call that need not be run, as the pass reaches it."""
        if self.position >= self.end:
            return None
        call = self.known[self.position]
        if call.module is not module:  # a network that runs differently this time: skip no more
            self.end = 0
            return None
        # A call that has not ended holds the changed layer: it runs, and calls within it are
        # skipped.
        if call.versions is None or call.stop > self.end:
            self.position += 1
            return None
        if self.tape is not None:
            # With all calls inside, so that the numbers of later calls are those of a whole pass.
            self.tape.extend(self.known[self.position : call.stop])
        self.position = call.stop
        return call


@contextmanager
def reusing(network: Network) -> Iterator[PrefixReuse]:
    """Within this block the network's passes can be recorded and resumed."""
    reuse = PrefixReuse(network)
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for module in network.module.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # one call, nothing to see inside
            # Wrapped, because some networks look at the signature of a module's forward.
            forwards[module] = update_wrapper(
                partial(reuse.call, module, module.forward), module.forward
            )
    with forward_replaced(forwards):
        yield reuse


@contextmanager
def forward_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within this block these modules run these functions; hooks stay in effect."""
    # An outer block or a package (accelerate) may have set a `forward` on the module itself: that
    # one is put back; elsewhere the class's shows again.
    own = {module: vars(module)["forward"] for module in forwards if "forward" in vars(module)}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)
            if module in own:
                vars(module)["forward"] = own[module]


def _versions(value: Any) -> list[tuple[int, int]] | None:
    """Identity and version of every tensor; ``None`` where something may change unseen."""
    found = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            # Tensors of inference mode have no version: asking for it raises.
            found.append((id(leaf), 0 if leaf.is_inference() else leaf._version))
        elif not isinstance(leaf, CONSTANT):
            return None
    return found


def _is_differentiated(value: Any) -> bool:
    """Whether a network takes gradients of its own, of tensors of this very pass (forces)."""
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(value))


def _share_memory(left: Any, right: Any) -> bool:
    def storages(value: Any) -> set[int]:
        tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    return not storages(left).isdisjoint(storages(right))


def _same(leaf: Any) -> Any:
    return leaf


def _clone(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
