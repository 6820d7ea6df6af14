"""Second moments of what the rows of every weight meet, plain and guided by the loss."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Self, final

from torch import Tensor, nn

from mpq._support.ranks import Ranks
from mpq.errors import InputError
from mpq.network.examples import Batch, Calibration
from mpq.network.halving import halved
from mpq.network.layer import Layer, weighted
from mpq.network.modules import hooks, weight_of
from mpq.network.own_forward import is_computed_again
from mpq.network.weight_layout import layout_of
from mpq.rounding.diagonal_blocks import DENSE_INPUTS, moment_shape
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap, read_gradients
from mpq.sensitivity.passes.forward_pass import read_batch
from mpq.sensitivity.passes.layer_moments import EmbeddingMoments, LayerMoments, MatrixMoments
from mpq.sensitivity.passes.looking import Looking
from mpq.sensitivity.passes.moment_mixing import Collected, Mixing, SecondMoments
from mpq.sensitivity.passes.operator_calls import operator_call
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes

POSITIONS: Final = 128
"""A moment of ``K`` inputs is known well enough from several times ``K`` positions: GPTQ takes
128 texts of 2048 tokens for up to 49152 inputs. A convolution of few channels over many images has
thousands of times as many, and the product of all takes longer than the network."""


def second_moments(
    on: Estimation,
    *,
    guidance: float = 0.5,
    dense_inputs: int = DENSE_INPUTS,
    positions: int = POSITIONS,
    seed: int = 0,
) -> SecondMoments:
    r"""Collects the second moments of all layers in one forward and one backward pass.

    .. math::
        H = \mathrm{mean}_n \sum_p x_{np} x_{np}^T, \quad
        G = \mathrm{mean}_n \sum_p \mathrm{mean}_o (g_{npo}^2) \, x_{np} x_{np}^T, \quad
        (1 - \gamma) H + \gamma \frac{\mathrm{tr} H}{\mathrm{tr} G} G

    with ``x`` what a row of the weight meets at position ``p`` of example ``n`` (a token's vector,
    a convolution's patch) and ``g`` the gradient of the layer's output from the output sketch's
    softened probe, over the output channels ``o``. Errors ``d`` of a weight's rows change the
    layer's output by :math:`\sum_r d_r^T H d_r` per example, its square being that of GPTQ (Frantar
    et al. 2022, arXiv:2210.17323), and the loss, if rows do not interact and gradients of a row's
    output are alike in size, by half of :math:`\sum_r d_r^T G d_r`, as in GuidedQuant (Kim et al.
    2025, arXiv:2505.07004; they keep a matrix for each of several groups of channels, we one). The
    mix has the trace, and so the unit, of ``H``: squared output per example. Groups of a
    convolution are treated as layers of their own. Where no gradient arrives, ``G`` is left out.

    Layers that share a weight have the sum of their moments, as errors of that weight are errors of
    each of them. An embedding's row ``t`` meets its token only: its part is the identity times
    :math:`\mathrm{mean}_n(T_n) / V` in ``H``, the uses of a row among ``V`` in an example, and
    :math:`\mathrm{mean}_n \sum_p \mathrm{mean}_e(g_{npe}^2) / V` in ``G``, both of which are the
    mean over rows of its own form, in the units of the others. A layer among them that has no
    moment of its own is left out of the sum.

    A layer that reads numbers whose squares are beyond float32 has none; where those of gradients
    are, it has the plain one.

    Takes ``8 K k`` bytes for each group of each layer while it collects, and half of that after,
    where ``k = K`` up to 16,384 inputs. A larger moment is block-diagonal: of consecutive inputs,
    all blocks together in the memory of one of 16,384 inputs, or less. What inputs of different
    blocks have to do with each other is left out then, where GPTQ has all of it.

    Layers that no gradient reaches take a forward pass more.

    Args:
        on: The network, in which BatchNorm is folded, and the examples; nothing is quantized.
        guidance: Share of the guided moment, :math:`\gamma`, from 0 (no backward pass) to 1.
        positions: Where a convolution has more than so many positions per weight of a row over all
            examples, at most so many and at least half as many are looked at, evenly spread
            (``Lattice``), and count for the others; 0: all.
        dense_inputs: Larger moments than that of a row of so many weights are block-diagonal.
        seed: Seed of the probes' random signs.

    Raises:
        InputError: If the guidance is no share, or a number of inputs or positions makes no sense.
        GradientError: If the network cannot be differentiated.
    """
    collected = PartialMoments.of(on, [on.data], guidance, dense_inputs, positions, seed)
    return collected.total([0], is_last=True)


@final
@dataclass(frozen=True, eq=False)
class PartialMoments:
    """What parts of the examples add to the second moments, of which any may be summed up.

    The probes, and the positions of convolutions that are looked at, are those of all examples.

    Args:
        on: The network and all examples.
        guidance: As in ``second_moments``.
        parts: What was collected from each.
        layers: Whose they are.
    """

    on: Estimation
    guidance: float
    parts: Sequence[Collected]
    layers: Sequence[Layer]

    @classmethod
    def of(
        cls,
        on: Estimation,
        data: Sequence[Calibration],
        guidance: float = 0.5,
        dense_inputs: int = DENSE_INPUTS,
        positions: int = POSITIONS,
        seed: int = 0,
        layers: Sequence[Layer] | None = None,
    ) -> Self:
        """Collects them in one forward and one backward pass over all parts.

        Takes the memory of ``second_moments`` for each part. Those of some layers are what they are
        among those of all, to the last bit.

        Args:
            on: As in ``second_moments``.
            data: Consecutive parts, which are all of its examples.
            guidance: As in ``second_moments``, and what follows.
            dense_inputs: See there.
            positions: See there.
            seed: See there.
            layers: Some of the network's, all that share a weight or none of them; default: all.

        Raises:
            InputError: As there.
            GradientError: As there.
        """
        chosen = weighted(on.network.layers) if layers is None else layers
        if not 0 <= guidance <= 1:
            raise InputError(f"guidance is a share from 0 to 1; got {guidance}")
        if dense_inputs < 1 or positions < 0:
            raise InputError(
                "second moments need dense_inputs >= 1 and positions >= 1, or 0 for all positions; "
                f"got {dense_inputs} and {positions}"
            )
        probes = Probes(on.network.metric, TEMPERATURE, seed, has_scale=False)
        looking, origin, found = Looking.of(on, positions), on.data.first().start, []
        for part in data:
            shown = replace(on, data=part)
            collecting = _Collecting(
                shown, chosen, dense_inputs, looking, origin, is_guided=guidance > 0
            )
            if guidance:
                collecting.read_backward(probes)
            collecting.read_forward()
            found.append(collecting.collected)
        return cls(on, guidance, found, chosen)

    def total(self, indices: Sequence[int], is_last: bool = False) -> SecondMoments:
        """The second moments of some parts' examples.

        Args:
            indices: Which parts, at least one.
            is_last: Whether nothing else will be asked: memory is given back layer by layer.
        """
        parts = [self.parts[i] for i in indices]
        return Mixing(self.layers, parts, self.guidance, is_last).result()


class _Collecting:
    """Reads every call of every one of some layers that can have a moment."""

    def __init__(
        self,
        on: Estimation,
        layers: Sequence[Layer],
        dense_inputs: int,
        looking: Looking,
        origin: int,
        is_guided: bool,
    ) -> None:
        self._on, self._layers, self._looking = on, layers, looking
        self._origin, self._first = origin, 0  # example of the batch that is read
        self._empty = partial(_empty, dense_inputs=dense_inputs, is_guided=is_guided)
        self._begin()

    def _begin(self) -> None:
        """Nothing is read yet, or all of it was of a pass that broke off."""
        network = self._on.network
        self.moments: dict[str, LayerMoments] = {
            layer.name: self._empty(layer, network.layer_module(layer.name))
            for layer in self._layers
        }
        self.missing: dict[str, str] = {}
        self.calls, self._reads = Counter[str](), Counter[str]()

    @property
    def collected(self) -> Collected:
        """What there is so far."""
        return Collected(self.moments, self.missing, set(self.calls), self._on.data.num_examples)

    def read_backward(self, probes: Probes) -> None:
        """Plain and guided moments."""
        if self._on.ranks is None:
            self._halved(partial(self._read_backward, probes))
            return
        self._on.ranks.together(lambda: self._halved(partial(self._read_backward, probes)))
        self._share(self._on.ranks, list(self.moments), is_guided=True)

    def _halved(self, read: Callable[[Calibration], None]) -> None:
        halved("collecting second moments", self._on.data, read, self._on.network.why_uncut)

    def _read_backward(self, probes: Probes, data: Calibration) -> None:
        network = self._on.network
        self._begin()
        for batch in self._batches(data):
            handles = [
                network.layer_module(name).register_forward_hook(partial(self._count, name))
                for name in self.moments
            ]
            with hooks(handles):
                read_gradients(network, batch, self, partial(probes.draw, batch, None, 0))

    def _batches(self, data: Calibration) -> Iterator[Batch]:
        """Those of this process."""
        ranks = self._on.ranks
        own = None if ranks is None else ranks.own
        for batch in replace(self._on, data=data).batches("second moments", own):
            self._first = batch.start - self._origin
            yield batch

    def _share(self, ranks: Ranks, names: Sequence[str], is_guided: bool) -> None:
        """All ranks have what all of them read of some layers."""
        found = ranks.gathered((self.missing, self.calls, self._reads))
        self.calls, self._reads = Counter[str](), Counter[str]()
        for missing, calls, reads in found:
            self.missing |= missing
            self.calls.update(calls)
            self._reads.update(reads)
        # A layer that is refused by one is known by none.
        for name in self.missing:
            self.moments.pop(name, None)
            del self.calls[name]
        for name in names:
            if name in self.moments:
                self.moments[name].share(ranks, is_guided)

    def _count(self, name: str, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        if output.numel() and not is_computed_again():
            self.calls[name] += 1

    def read_forward(self) -> None:
        """Plain moments of the layers that a backward pass did not read in every call."""
        self._unread = {n for n in self.moments if not 0 < self.calls[n] == self._reads[n]}
        if not self._unread:
            return
        ranks, left = self._on.ranks, sorted(self._unread)
        if ranks is None:
            self._halved(self._read_forward)
            return
        ranks.together(lambda: self._halved(self._read_forward))
        self._share(ranks, left, is_guided=False)

    def _read_forward(self, data: Calibration) -> None:
        for name in self._unread & self.moments.keys():
            self.moments[name].forget_plain()
        for batch in self._batches(data):
            read_batch(self._on.network, batch, self._read_call)

    def _read_call(self, tap: Tap, x: Tensor, output: Tensor) -> None:
        if tap.name not in self._unread or tap.name not in self.moments:
            return
        self.calls[tap.name] += 1  # 0 where there was no backward pass
        call = operator_call(tap, x)
        if call is None:
            self._refuse(tap.name)
        else:
            seen = self._looking.seen(*call, output, self._first)
            self.moments[tap.name].add_plain(*call, output, seen)

    @property
    def reads_inputs(self) -> bool:
        """See ``GradientReader``."""
        return False

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        if tap.name not in self.moments:
            return
        self._reads[tap.name] += 1
        call = operator_call(tap, x)
        if call is None:
            self._refuse(tap.name)
        else:
            self.moments[tap.name].add(*call, g, self._looking.seen(*call, g, self._first))

    def _refuse(self, name: str) -> None:
        del self.moments[name], self.calls[name]
        self.missing[name] = (
            f"layer {name!r} has a forward of its own, which does more than to hand on what it "
            "makes of its input to torch's operator, or a hook that changes its output, so that "
            "what its weight meets is not known"
        )


def _empty(
    layer: Layer, layer_module: nn.Module, dense_inputs: int, is_guided: bool
) -> LayerMoments:
    rows, inputs = layout_of(layer_module).to_rows(weight_of(layer_module)).shape
    shape = moment_shape(layer.groups, inputs, dense_inputs)
    if layer.kind == "embedding":
        return EmbeddingMoments(rows, shape)
    return MatrixMoments(layer_module, shape, is_guided)
