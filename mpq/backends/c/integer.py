"""The program in exact integers of numpy and torch: what the C has to equal, bit for bit.

It shares no code with the C: convolutions are torch's in float64, which is exact for whole numbers
below ``2^53``, as all sums here are.
"""

from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch.nn import functional as F

from mpq.backends.c.fixed_point import Integers, point, rounded_off
from mpq.backends.c.program import Program, Work
from mpq.backends.c.steps import Step


def run_integers(
    program: Program, codes: Integers, made: Callable[[str, Integers], None] | None = None
) -> Integers:
    """The network's outputs, as 32-bit numbers in units of the output's scale.

    Args:
        program: The network.
        codes: ``[N, K]`` codes of the input.
        made: Is given every tensor of one example after the other, by name: codes without their
            zero, the input first.

    Returns:
        ``[N, P]``.
    """
    found = []
    for example in codes:
        values = _run(program, example)
        found.append(values[program.steps.makes])
        if made is not None:
            for name, value in values.items():
                made(name, value - program.forms[name].zero)
    return np.stack(found)


def _run(program: Program, codes: Integers) -> dict[str, Integers]:
    values = {program.steps.reads: codes.reshape(-1)}
    for work in program.works:
        step = work.step
        read = [values[name] - program.forms[name].zero for name in step.reads]
        form = program.forms[step.makes]
        sums = work.ratios.scaled(_sums(work, read[0].reshape(step.shapes[0])))
        if work.weights is not None and work.weights.bias is not None:
            sums = sums + work.weights.bias.reshape(-1, 1, 1)
        if work.added is not None:
            sums = sums + work.added.scaled(read[1].reshape(step.shapes[1]))
        found = rounded_off(sums, point(form.bits)) + form.zero
        values[step.makes] = np.clip(found, *work.ends).reshape(-1)
    return values


def _sums(work: Work, x: Integers) -> Integers:
    """``[O, H, W]`` sums, maxima or copies of ``x [C, H, W]``."""
    step = work.step
    if step.kind == "add":
        return x
    if step.kind == "layer":
        assert work.weights is not None
        return _convolved(step, x, work.weights.codes)
    if step.kind == "move":
        return _moved(step, x)
    windows = _windows(step, x)
    return np.asarray(windows.max(axis=-1) if step.kind == "max" else windows.sum(axis=-1))


def _convolved(step: Step, x: Integers, codes: Integers) -> Integers:
    window, (_, *sizes) = step.window, step.shapes[1]
    kernel = torch.from_numpy(codes).double().reshape(len(codes), -1, *window.kernel)
    padded = torch.from_numpy(_padded(step, x, 0)).double()[None]
    made = F.conv2d(
        padded, kernel, stride=window.stride, dilation=window.dilation, groups=window.groups
    )
    return made[0, :, : sizes[0], : sizes[1]].numpy().astype(np.int64)


def _padded(step: Step, x: Integers, fill: int) -> Integers:
    """With everything that windows reach beyond it."""
    window, widths = step.window, [(0, 0)]
    for axis in (0, 1):
        before = window.padding[axis]
        reach = (step.shapes[1][axis + 1] - 1) * window.stride[axis]
        end = reach + window.dilation[axis] * (window.kernel[axis] - 1) + 1
        widths.append((before, max(end - before - x.shape[axis + 1], 0)))
    return np.pad(x, widths, constant_values=fill)


def _windows(step: Step, x: Integers) -> Integers:
    """``[C, H, W, kernel]`` numbers of every window; of a maximum without the padding."""
    window, (channels, height, width) = step.window, step.shapes[1]
    fill = -(2**40) if step.kind == "max" else 0
    padded = _padded(step, x, fill)
    rows = _places(height, window.stride[0], window.kernel[0], window.dilation[0])
    columns = _places(width, window.stride[1], window.kernel[1], window.dilation[1])
    found = padded[:, rows[:, None, :, None], columns[None, :, None, :]]
    return found.reshape(channels, height, width, prod(window.kernel))


def _places(count: int, stride: int, kernel: int, dilation: int) -> Integers:
    """``[count, kernel]`` indices."""
    return np.arange(count)[:, None] * stride + np.arange(kernel)[None] * dilation


def _moved(step: Step, x: Integers) -> Integers:
    window = step.window
    made = np.zeros(step.shapes[1], dtype=np.int64)
    places = []
    for axis, (before, stride) in enumerate(
        zip((window.channels_before, *window.padding), (1, *window.stride), strict=True)
    ):
        read = np.arange(made.shape[axis]) * stride - before
        places.append((read, (read >= 0) & (read < x.shape[axis])))
    written = np.ix_(*(np.flatnonzero(inside) for _, inside in places))
    made[written] = x[np.ix_(*(read[inside] for read, inside in places))]
    return made
