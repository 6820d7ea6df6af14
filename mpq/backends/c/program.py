"""A network in integers: steps with their codes, ratios and places, ready to be written or run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import nn

from mpq.backends.c.arena import Arena, overwritten, plan
from mpq.backends.c.fixed_point import Integers, Ratios, point
from mpq.backends.c.formats import Form, clamp_codes
from mpq.backends.c.rounded import Rounded
from mpq.backends.c.steps import Step, Steps
from mpq.errors import ModelError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes
from mpq.quantization.tensor_format import Granularity

MOST = 2**31 - 1


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """A layer's constants.

    Args:
        name: The layer's.
        widths: Bits of a weight's code, ``[O]`` of every output channel.
        codes: ``[O, K]`` signed.
        scales: ``[O]`` float32, or ``[1]``: only for people, and to decode the weights.
        bias: ``[O]`` in units of an output's code, with a binary point; ``None``: it has none.
    """

    name: str
    widths: Integers
    codes: Integers
    scales: np.ndarray[tuple[int], np.dtype[np.float32]]
    bias: Integers | None

    @property
    def is_mixed(self) -> bool:
        """Whether channels have bits of their own."""
        return len(np.unique(self.widths)) > 1


@final
@dataclass(frozen=True, eq=False)
class Work:
    """A step in integers.

    Args:
        step: What it does.
        ratios: Of its sums to its output's codes: of a layer ``[O]`` or ``[1]``, else ``[1]``.
        added: Of what is added to them.
        weights: Of a layer.
        ends: Smallest and largest code that it makes.
        is_backwards: Whether it runs from the last number to the first, as it makes wider codes in
            the place of narrower ones.
    """

    step: Step
    ratios: Ratios
    added: Ratios | None
    weights: Weights | None
    ends: tuple[int, int]
    is_backwards: bool


@final
@dataclass(frozen=True, eq=False)
class Program:
    """A whole network.

    Args:
        steps: Its steps.
        forms: Name of a tensor to how it is stored.
        arena: Where they lie.
        works: One for each step.
    """

    steps: Steps
    forms: Mapping[str, Form]
    arena: Arena
    works: tuple[Work, ...]

    @property
    def input_form(self) -> Form:
        """Of the network's input."""
        return self.forms[self.steps.reads]

    @property
    def output_form(self) -> Form:
        """Of the network's output."""
        return self.forms[self.steps.makes]

    @property
    def layers(self) -> tuple[Weights, ...]:
        """Constants of the layers, in order."""
        return tuple(work.weights for work in self.works if work.weights is not None)


def program_of(
    rounded: Rounded,
    codes: Mapping[str, Codes],
    modules: Mapping[str, nn.Module],
    layers: Mapping[str, AssignedLayer],
) -> Program:
    """The integers of a network whose grids are known.

    Args:
        rounded: The network, calibrated.
        codes: Layer name to its weight's codes.
        modules: Layer name to its module, with its bias.
        layers: Of the assignment, by name.

    Raises:
        ModelError: If a sum could leave 32 bits, or scales are too far apart; names the layer.
    """
    steps = rounded.steps
    forms = {name: Form.of(grid) for name, grid in rounded.grids.items()}
    parts = {name: _Part.of(codes[name], modules[name], layers[name]) for name in codes}
    last = steps.steps[-1]
    # A binary point where the largest output that there can be still fits.
    forms[last.makes] = Form(32, _largest(last, forms, parts) / 2**30)
    bits = {name: form.bits for name, form in forms.items()}
    works = []
    for t, step in enumerate(steps.steps):
        try:
            works.append(_work(step, forms, parts, _narrower(steps, t, bits)))
        except ModelError as error:
            where = f"layer {step.layer!r}" if step.layer else step.makes
            raise ModelError(f"c: {where}: {error}") from error
    return Program(steps, forms, plan(steps, bits), tuple(works))


@final
@dataclass(frozen=True, eq=False)
class _Part:
    """Widths ``[O]``, codes ``[O, K]``, scales ``[O]`` or ``[1]``, bias ``[O]`` or ``None``."""

    name: str
    widths: Integers
    codes: Integers
    scales: np.ndarray[tuple[int], np.dtype[np.float32]]
    bias: np.ndarray[tuple[int], np.dtype[np.float64]] | None

    @classmethod
    def of(cls, codes: Codes, module: nn.Module, layer: AssignedLayer) -> "_Part":
        weight = layer.precision.weight
        scales = codes.scale[:, 0].numpy().astype(np.float32)
        columns = np.zeros(len(scales), dtype=np.intp)
        columns = columns if weight.channels is None else weight.channels.columns
        widths = np.array([each.number.bits for each in weight.by_channel], dtype=np.int64)
        bias = getattr(module, "bias", None)
        return cls(
            layer.name,
            widths[columns],
            codes.integers().numpy().astype(np.int64),
            scales[:1] if weight.granularity is Granularity.TENSOR else scales,
            None if bias is None else bias.detach().double().cpu().numpy(),
        )

    def most(self, form: Form) -> Integers:
        """``[O]`` largest sum of products that codes of the input can make."""
        reach = max(form.zero, 2**form.bits - 1 - form.zero)
        return np.asarray(np.abs(self.codes).sum(axis=1) * reach, dtype=np.int64)


def _narrower(steps: Steps, t: int, bits: Mapping[str, int]) -> bool:
    """Whether a step makes wider codes in the place of narrower ones."""
    place = overwritten(steps, t)
    return place is not None and bits[steps.steps[t].makes] > bits[place]


def _largest(step: Step, forms: Mapping[str, Form], parts: Mapping[str, _Part]) -> float:
    """The largest output that any input can make."""
    names = step.reads
    total = 0.0
    if step.layer is not None:
        part, form = parts[step.layer], forms[names[0]]
        sums = part.most(form) * form.scale * part.scales.astype(np.float64)
        bias = 0.0 if part.bias is None else np.abs(part.bias)
        total, names = float((sums + bias).max()), names[1:]
    for name in names:
        form = forms[name]
        total += form.scale * max(form.zero, 2**form.bits - 1 - form.zero)
    return total or 1.0


def _work(
    step: Step, forms: Mapping[str, Form], parts: Mapping[str, _Part], is_backwards: bool
) -> Work:
    form = forms[step.makes]
    unit = form.scale * 2.0 ** -point(form.bits)
    ends = clamp_codes(step, form)
    first = forms[step.reads[0]]
    added = None if len(step.reads) == 1 else Ratios.of(forms[step.reads[1]].scale / unit)
    if step.layer is None:
        count = step.window.kernel[0] * step.window.kernel[1] if step.kind == "mean" else 1
        ratios = Ratios.of(first.scale / count / unit)
        return Work(step, ratios, added, None, ends, is_backwards)
    part = parts[step.layer]
    if int(part.most(first).max()) > MOST:
        raise ModelError(f"sums of {part.codes.shape[1]} products could leave 32 bits")
    ratios = Ratios.of(first.scale * part.scales.astype(np.float64) / unit)
    bias = None if part.bias is None else np.rint(part.bias / unit)
    if bias is not None and np.abs(bias).max() > MOST:
        raise ModelError("its bias is thousands of times as large as the range of what it makes")
    weights = Weights(
        part.name, part.widths, part.codes, part.scales,
        None if bias is None else bias.astype(np.int64),
    )  # fmt: skip
    return Work(step, ratios, added, weights, ends, is_backwards)
