"""A program as the text of C99."""

from collections.abc import Iterable, Mapping
from importlib.resources import files
from math import prod
from string import Template
from typing import Final

import numpy as np
import torch

from mpq.backends.c.fixed_point import FRACTION, Integers, Ratios
from mpq.backends.c.program import Program, Weights, Work

LINE: Final = 100
"""Characters of a line of the text."""
KERNELS: Final = {"mean": "mpq_mean", "max": "mpq_max", "move": "mpq_move"}


def constant_bytes(weights: Weights) -> int:
    """Bytes of a layer's constants: codes, five for each scale, four for each bias, widths."""
    others = 4 * (0 if weights.bias is None else len(weights.bias))
    others += len(weights.widths) if weights.is_mixed else 0
    return -(-_code_bits(weights) // 8) + 5 * len(weights.scales) + others


def _code_bits(weights: Weights) -> int:
    return int(weights.widths.sum() * weights.codes.shape[1])


def texts(program: Program, inputs: Integers, outputs: Integers) -> dict[str, str]:
    """File name to text.

    Args:
        program: The network.
        inputs: ``[N, K]`` codes of examples for the check.
        outputs: ``[N, P]`` that they have to give.
    """
    places = {"header": _header(program), "float": _float(program)}
    return {
        "kernels.h": _filled("kernels.h", {"fraction": str(FRACTION)}),
        "kernels.c": _filled("kernels.c", {}),
        "network.h": _filled("network.h", places["header"]),
        "network.c": _filled("network.c", _network(program)),
        "network_float.c": _filled("network_float.c", places["float"]),
        "check.c": _filled("check.c", _check(inputs, outputs)),
        "host.c": _filled("host.c", _host(program)),
    }


def _filled(name: str, values: Mapping[str, str]) -> str:
    text = (files("mpq.backends.c") / "templates" / name).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _header(program: Program) -> dict[str, str]:
    read, made = program.input_form, program.output_form
    return {
        "num_inputs": f"{program.steps.elements[program.steps.reads]}u",
        "input_bits": str(read.bits),
        "input_zero": str(read.zero),
        "input_scale": _float_literal(read.scale),
        "num_outputs": f"{program.steps.elements[program.steps.makes]}u",
        "output_scale": _float_literal(made.scale),
        "arena": f"{program.arena.num_bytes}u",
        "constants": f"{sum(map(constant_bytes, program.layers))}u",
    }


def _float(program: Program) -> dict[str, str]:
    read = program.input_form
    # In float32, as the simulation multiplies with it.
    reciprocal = float(torch.tensor(read.scale, dtype=torch.float32).reciprocal())
    return {"reciprocal": _float_literal(reciprocal), "largest": str(2**read.bits - 1)}


def _network(program: Program) -> dict[str, str]:
    read = program.input_form
    numbers = range(len(program.works))
    return {
        "constants": "\n".join(
            _constants(number, work, work.weights)
            for number, work in zip(numbers, program.works, strict=True)
            if work.weights is not None
        ),
        "steps": "\n".join(
            _step(program, number, work)
            for number, work in zip(numbers, program.works, strict=True)
        ),
        "input_bits": str(read.bits),
        "input_offset": f"{program.arena.offsets[program.steps.reads]}u",
        "calls": "\n".join(f"    step_{n}({_argument(program, n)});" for n in numbers),
    }


def _argument(program: Program, number: int) -> str:
    return "outputs" if number == len(program.works) - 1 else ""


def _constants(number: int, work: Work, weights: Weights) -> str:
    """The arrays of a layer."""
    parts = [
        f"/* {_comment(weights.name)}: {_told_widths(weights)} bits */",
        _array("uint8_t", f"codes_{number}", packed_codes(weights)),
        _array("int32_t", f"multipliers_{number}", work.ratios.multipliers.tolist()),
        _array("uint8_t", f"shifts_{number}", work.ratios.shifts.tolist()),
    ]
    if weights.is_mixed:
        parts.append(_array("uint8_t", f"widths_{number}", weights.widths.tolist()))
    if weights.bias is not None:
        parts.append(_array("int32_t", f"bias_{number}", weights.bias.tolist()))
    return "\n".join(parts) + "\n"


def packed_codes(weights: Weights) -> list[int]:
    """One dense stream of all codes, from 0 on; the last byte may not be full."""
    unsigned = (weights.codes + 2 ** (weights.widths[:, None] - 1)).astype(np.uint8)
    places = np.unpackbits(unsigned[..., None], axis=-1, bitorder="little")  # [O, K, 8]
    is_held = np.arange(8) < weights.widths[:, None, None]
    stream = places[np.broadcast_to(is_held, places.shape)]
    found: list[int] = np.packbits(stream, bitorder="little").tolist()
    return found


def _told_widths(weights: Weights) -> str:
    return ", ".join(map(str, np.unique(weights.widths).tolist()))


def _step(program: Program, number: int, work: Work) -> str:
    """The function of a step."""
    step = work.step
    is_last = number == len(program.works) - 1
    name = f"layer {_comment(step.layer)}" if step.layer else step.kind
    lines = [f"/* {name}: {step.shapes[0]} to {step.shapes[1]} */"]
    if work.weights is not None:
        lines += _weights_function(number, work.weights)
    lines += [f"static void step_{number}({'int32_t *outputs' if is_last else 'void'})", "{"]
    lines += [f"    mpq_tensor in, out{', added' if len(step.reads) == 2 else ''};"]
    elementwise = step.is_in_place
    lines += [] if elementwise else ["    mpq_shape shape;"]
    lines += ["    mpq_weights weights;"] if work.weights is not None else []
    lines += [f"    mpq_ratio {'added_ratio' if step.layer else 'ratio'};"]
    lines += ["    mpq_ratio added_ratio;"] if step.kind == "add" else []
    lines += _tensor(program, "in", step.reads[0])
    lines += _tensor(program, "added", step.reads[1]) if len(step.reads) == 2 else []
    lines += _tensor(program, "out", step.makes, work.ends)
    lines += [] if elementwise else _shape(work)
    lines += [f"    set_weights_{number}(&weights);"] if work.weights is not None else []
    return "\n".join([*lines, *_call(work), "}", ""])


def _call(work: Work) -> list[str]:
    step, added = work.step, "&added" if work.added is not None else "NULL"
    if step.layer is not None:
        # Unused where nothing is added, but never undefined.
        ratio = work.added or Ratios.of(1.0)
        return [
            *_ratio("added_ratio", ratio),
            f"    mpq_layer(&in, &out, &shape, &weights, {added}, added_ratio);",
        ]
    lines = _ratio("ratio", work.ratios)
    if not step.is_in_place:
        return [*lines, f"    {KERNELS[step.kind]}(&in, &out, &shape, ratio);"]
    if work.added is not None:
        lines += _ratio("added_ratio", work.added)
    second = "added_ratio" if work.added is not None else "ratio"
    count = f"{prod(step.shapes[1])}u, {int(work.is_backwards)}"
    return [*lines, f"    mpq_add(&in, ratio, {added}, {second}, &out, {count});"]


def _ratio(name: str, ratio: Ratios) -> list[str]:
    return [
        f"    {name}.multiplier = {int(ratio.multipliers[0])};",
        f"    {name}.shift = {int(ratio.shifts[0])};",
    ]


def _tensor(
    program: Program, variable: str, name: str, ends: tuple[int, int] = (0, 0)
) -> list[str]:
    form = program.forms[name]
    fields = {"data": _place(program, name), "bits": form.bits, "zero": form.zero}
    fields |= {"low": _integer(ends[0]), "high": _integer(ends[1])}
    return [f"    {variable}.{key} = {value};" for key, value in fields.items()]


def _place(program: Program, name: str) -> str:
    is_output = program.forms[name].bits == 32
    return "outputs" if is_output else f"arena + {program.arena.offsets[name]}u"


def _shape(work: Work) -> list[str]:
    window, (read, made) = work.step.window, work.step.shapes
    fields = dict(
        zip(("in_channels", "in_height", "in_width"), read, strict=True),
        **dict(zip(("out_channels", "out_height", "out_width"), made, strict=True)),
        **dict(zip(("kernel_height", "kernel_width"), window.kernel, strict=True)),
        **dict(zip(("stride_y", "stride_x"), window.stride, strict=True)),
        pad_channels=window.channels_before,
        **dict(zip(("pad_y", "pad_x"), window.padding, strict=True)),
        **dict(zip(("dilation_y", "dilation_x"), window.dilation, strict=True)),
        groups=window.groups,
    )
    return [f"    shape.{key} = {value};" for key, value in fields.items()]


def _weights_function(number: int, weights: Weights) -> list[str]:
    fields = {
        "codes": f"codes_{number}",
        "multipliers": f"multipliers_{number}",
        "shifts": f"shifts_{number}",
        "bias": "NULL" if weights.bias is None else f"bias_{number}",
        "widths": f"widths_{number}" if weights.is_mixed else "NULL",
        "bits": int(weights.widths.max()),
        "is_shared": int(len(weights.scales) == 1 and len(weights.codes) > 1),
    }
    return [
        f"static void set_weights_{number}(mpq_weights *weights)",
        "{",
        *(f"    weights->{key} = {value};" for key, value in fields.items()),
        "}",
        "",
    ]


def _check(inputs: Integers, outputs: Integers) -> dict[str, str]:
    return {
        "count": str(len(inputs)),
        "inputs": ",\n".join(f"{{{_listed(row)}}}" for row in inputs.tolist()),
        "outputs": ",\n".join(f"{{{_listed(map(_integer, row))}}}" for row in outputs.tolist()),
    }


def _host(program: Program) -> dict[str, str]:
    scales, decodes = [], ["        mpq_weights constants;"]
    for number, work in enumerate(program.works):
        if work.weights is None:
            continue
        rows, columns = work.weights.codes.shape
        numbers = map(_float_literal, work.weights.scales.tolist())
        scales.append(_array("float", f"scales_{number}", numbers))
        decodes += [
            f"        set_weights_{number}(&constants);",
            f"        weights({number}, &constants, scales_{number}, {rows}u, {columns}u);",
        ]
    return {
        "scales": "\n".join(scales) + "\n",
        "decodes": "\n".join(decodes),
        "traces": "\n".join(_traces(program)),
    }


def _traces(program: Program) -> list[str]:
    """Calls of all steps, each with what it has made."""
    lines = [_tell(program, program.steps.reads)]
    for number, work in enumerate(program.works):
        lines += [f"    step_{number}({_argument(program, number)});"]
        lines += [_tell(program, work.step.makes)]
    return lines


def _tell(program: Program, name: str) -> str:
    form = program.forms[name]
    size = program.steps.elements[name]
    return f"    tell({_place(program, name)}, {form.bits}, {form.zero}, {size}u);"


def _array(kind: str, name: str, values: Iterable[object]) -> str:
    found = list(values)
    return f"static const {kind} {name}[{len(found)}] = {{{_listed(found)}}};"


def _listed(values: Iterable[object]) -> str:
    """Numbers with commas, in lines."""
    lines, line = [], ""
    for value in map(str, values):
        if len(line) + len(value) + 1 > LINE:
            lines.append(line)
            line = ""
        line += f"{value},"
    return "\n".join(["", *lines, line, ""])


def _integer(value: int) -> str:
    """A literal; the smallest number is none in C, where a minus is an operation."""
    return f"({value + 1} - 1)" if value == -(2**31) else str(value)


def _float_literal(value: float) -> str:
    return f"{np.float32(value):.9e}f"


def _comment(name: str | None) -> str:
    """A name that ends no comment, in letters that every compiler reads."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "?" for c in name or "")
