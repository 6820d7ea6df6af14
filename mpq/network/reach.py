"""Which layers the calibration data reaches: in every batch, and by how many examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from mpq.network.dataflow import SHAPE_FAILURES
from mpq.network.examples import Batch
from mpq.network.layer import Layer
from mpq.network.modules import hooks
from mpq.network.open_weights import opened_parts
from mpq.network.recognising import Recognising
from mpq.network.refusals import is_readable
from mpq.network.tracing import kind_of
from mpq.network.weight_use import Block, WeightCall


@final
@dataclass(frozen=True)
class Reach:
    """What the calibration data reaches of a network.

    Args:
        num_examples: Examples that were looked at: all of them.
        never: Modules of a layer's kind that no example reached; left as they are.
        without_call: Those that are not called either, while something else computes with their
            weight; left as they are.
        partly: Layer to how many examples reached it, where that is not all of them; ``None``
            where it cannot be known, as the network does not run on single examples.
        also_used: Layers that are called, and whose weight functions read besides.
    """

    num_examples: int = 0
    never: tuple[str, ...] = ()
    without_call: tuple[str, ...] = ()
    partly: Mapping[str, int | None] = field(default_factory=dict)
    also_used: tuple[str, ...] = ()

    @property
    def uncalled(self) -> tuple[str, ...]:
        """All modules of a layer's kind that are never called."""
        return self.never + self.without_call

    def of(self, layers: Sequence[Layer]) -> "Reach":
        """As far as it speaks of these layers, and of what is no layer."""
        return replace(
            self,
            partly={x.name: self.partly[x.name] for x in layers if x.name in self.partly},
            also_used=tuple(x.name for x in layers if x.name in self.also_used),
        )

    def sentences(self) -> tuple[str, ...]:
        """What people should know; nothing where every layer is reached by every example.

        >>> Reach(8, never=("aux",), partly={"experts.0": 3}).sentences()
        ('never reached by the data, left as they are: aux', 'reached by a part of the 8 examples: experts.0 by 3')
        """  # noqa: E501
        told = []
        if self.never:
            told.append(f"never reached by the data, left as they are: {', '.join(self.never)}")
        if self.without_call:
            names = ", ".join(self.without_call)
            told.append(f"their weights are used without a call, left as they are: {names}")
        if self.also_used:
            told.append(
                "functions read the weight, quantized, of these layers besides their calls, which "
                "estimates from gradients do not see (auto measures them): "
                + ", ".join(self.also_used)
            )
        if self.partly:
            counts = ", ".join(
                f"{name} by {'some' if count is None else count}"
                for name, count in self.partly.items()
            )
            told.append(f"reached by a part of the {self.num_examples} examples: {counts}")
        return tuple(told)


@dataclass
class _Pass:
    """What one forward pass showed: how many examples, and how much of them every layer read.

    Args:
        size: Examples in it.
        inputs: Shapes of one example's inputs.
        lengths: Layer to the length of every call's input along the axis of examples.
    """

    size: int
    inputs: tuple[tuple[int, ...], ...]
    lengths: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> Self:
        """Before the batch is run."""
        return cls(batch.size, tuple(tuple(x.shape[1:]) for x in batch.tensors))

    def add(self, name: str, layer_module: nn.Module, read: Tensor) -> None:
        """One more call of a layer."""
        axes = read.ndim - read.is_floating_point()
        # Sequence-first networks have examples second; a convolution has its channels there.
        is_second = kind_of(layer_module) in ("linear", "embedding") and axes > 1
        is_second = is_second and read.shape[0] != self.size and read.shape[1] == self.size
        length = read.shape[int(is_second)] if read.ndim else 1
        # Called without rows, an expert is not reached.
        if length:
            self.lengths.setdefault(name, []).append(length)

    def is_whole(self, name: str) -> bool:
        """Whether a layer read the batch, or a multiple of it (windows, tokens)."""
        return all(length % self.size == 0 for length in self.lengths[name])

    def per_example(self, name: str) -> tuple[float, ...]:
        """How long every call's input is for one example."""
        return tuple(length / self.size for length in self.lengths[name])


@final
class Watch:
    """Forward passes over all batches, without keeping a tensor of any.

    Args:
        module: Our own copy of the model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._layers = {n: m for n, m in module.named_modules() if kind_of(m) is not None}
        # Of a parameter that was opened, what is no layer's call is refused.
        opened = set(map(id, opened_parts(module)))
        self._uses = _WeightUses({n: m for n, m in self._layers.items() if id(m) not in opened})
        self._passes: list[_Pass] = []
        self.known: set[str] = set()
        """Layers that were reached so far."""
        self.returned: Any = None
        """What the last batch gave."""

    def run(self, batch: Batch) -> tuple[str, ...]:
        """Runs one batch, on the module's device; the layers that it is the first to reach."""
        found = self._run(batch)
        self._passes.append(found)
        new = tuple(name for name in found.lengths if name not in self.known)
        self.known.update(new)
        return new

    def _run(self, batch: Batch) -> _Pass:
        found = _Pass.of(batch)
        handles = [
            m.register_forward_pre_hook(self._entering(name, found), with_kwargs=True)
            for name, m in self._layers.items()
        ]
        handles += [m.register_forward_hook(self._uses.leave) for m in self._layers.values()]
        with hooks(handles), torch.no_grad(), self._uses:
            self.returned = self._module(*batch.args, **batch.kwargs)
        return found

    def _entering(self, name: str, found: _Pass) -> Callable[..., None]:
        def hook(layer_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._uses.enter(layer_module)
            given = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            read = next(given, None)
            # What reads no tensor of its own (a size) is reached as a whole.
            found.add(name, layer_module, torch.empty(found.size) if read is None else read)

        return hook

    def reach(self, batches: Callable[[], Iterator[Batch]]) -> Reach:
        """What all batches together reached.

        Where a layer sees a part of a batch (an expert), every example is run alone: a pass more.

        Args:
            batches: The batches that were run, read again.
        """
        uncalled = [name for name in self._layers if name not in self.known]
        return Reach(
            sum(each.size for each in self._passes),
            tuple(name for name in uncalled if not self._uses.of(self._layers[name])),
            tuple(name for name in uncalled if self._uses.of(self._layers[name])),
            self._partly(batches),
            tuple(n for n, m in self._layers.items() if n in self.known and self._uses.of(m)),
        )

    def _partly(self, batches: Callable[[], Iterator[Batch]]) -> dict[str, int | None]:
        suspects = [n for n in self._layers if n in self.known and self._is_suspect(n)]
        if not suspects:
            return {}
        counts = _Counts(self._run, suspects)
        for batch, whole in zip(batches(), self._passes, strict=True):
            counts.add(batch, whole)
        total = sum(each.size for each in self._passes)
        return {name: count for name, count in counts.found.items() if count != total}

    def _is_suspect(self, name: str) -> bool:
        """Whether a layer may have read a part of the examples alone."""
        if not all(name in each.lengths and each.is_whole(name) for each in self._passes):
            return True
        # A part may be a multiple of the batch by chance, but hardly so in all like batches.
        like: dict[tuple[tuple[int, ...], ...], set[tuple[float, ...]]] = {}
        for each in self._passes:
            like.setdefault(each.inputs, set()).add(each.per_example(name))
        return any(len(lengths) > 1 for lengths in like.values())


class _Counts:
    """How many examples reach each suspect, by running them one at a time.

    Args:
        run: One forward pass.
        suspects: Layers that may read a part of the examples alone.
    """

    def __init__(self, run: Callable[[Batch], _Pass], suspects: Sequence[str]) -> None:
        self._run = run
        self._shared: set[str] = set()
        self.found: dict[str, int | None] = dict.fromkeys(suspects, 0)
        """Layer to its examples; ``None`` where they cannot be known."""

    def add(self, batch: Batch, whole: _Pass) -> None:
        """Counts the examples of one more batch, of which ``whole`` is known."""
        asked = [name for name in self.found if name in whole.lengths]
        for name, count in self._count(batch, whole, asked).items():
            known = self.found[name]
            self.found[name] = None if count is None or known is None else known + count

    def _count(self, batch: Batch, whole: _Pass, asked: Sequence[str]) -> dict[str, int | None]:
        every: dict[str, int | None] = dict.fromkeys(asked, batch.size)
        if batch.size == 1 or self._shared.issuperset(asked):
            return every
        try:
            ends = [self._run(batch.slice(i, i + 1)) for i in (0, batch.size - 1)]
            self._find_shared(whole, ends, asked)
            if self._shared.issuperset(asked):
                return every
            inner = [self._run(batch.slice(i, i + 1)) for i in range(1, batch.size - 1)]
        # A module may have its batch size built in, in a reshape for example.
        except SHAPE_FAILURES:
            return {n: batch.size if n in self._shared else None for n in asked}
        alone = {n: sum(n in each.lengths for each in (*ends, *inner)) for n in asked}
        # What no example alone reaches hangs on the others in its batch.
        return {n: batch.size if n in self._shared else alone[n] or None for n in asked}

    def _find_shared(self, whole: _Pass, ends: Sequence[_Pass], asked: Sequence[str]) -> None:
        # What reads the same whatever the examples (positions) is shared by all of them. An expert
        # never does: of the whole batch it reads the first one's rows and the last one's.
        same = {n for n in asked if all(x.lengths.get(n) == whole.lengths[n] for x in ends)}
        self._shared |= same


class _WeightUses(Recognising):
    """Finds weights that a torch function reads outside their own module's forward."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        weights = {id(w): w for m in layers.values() if isinstance(w := m.weight, nn.Parameter)}
        readable = [w for w in weights.values() if type(w) is nn.Parameter and is_readable(w)]
        super().__init__(readable)
        # By the parameter: a tied weight is used if it is used under any of its names.
        self._used = dict.fromkeys(weights, False)
        self._entered: list[int] = []

    def of(self, layer_module: nn.Module) -> bool:
        """Whether a module's weight was read without calling a module that has it."""
        return self._used.get(id(layer_module.weight), False)

    def enter(self, layer_module: nn.Module) -> None:
        """Before a layer, in which its weight may be read."""
        self._entered.append(id(layer_module.weight))

    def leave(self, *_: Any) -> None:
        """After a layer."""
        self._entered.pop()

    def call(self, call: WeightCall) -> Any:
        """See ``Recognising``."""
        self._mark(call.parameter)

    def other(self, _: Any, blocks: Sequence[Block]) -> None:
        """See ``Recognising``."""
        for block in blocks:
            self._mark(block.parameter)

    def _mark(self, weight: Tensor) -> None:
        if id(weight) not in self._entered:
            self._used[id(weight)] = True
