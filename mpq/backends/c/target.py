"""Portable C: one folder of C99 with a network's constants and steps, for microcontrollers."""

import json
from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.backends.c.compiler import compiled, compiler, run, sections
from mpq.backends.c.fixed_point import FRACTION, Integers
from mpq.backends.c.formats import refuse_left_out
from mpq.backends.c.program import Program, program_of
from mpq.backends.c.reading import exported, read_steps
from mpq.backends.c.rounded import Rounded, one_tensor
from mpq.backends.c.runtime import LAYERS, Compiled
from mpq.backends.c.source import texts
from mpq.backends.c.tracing import told_steps
from mpq.backends.file_size import FileSize, tensor_sizes
from mpq.backends.runtime import Loaded
from mpq.backends.searched import Searched
from mpq.backends.simulate import quantizer_of
from mpq.backends.target import MEDIAN, LayerShape, Shipped, Target, rows_of
from mpq.errors import InputError, ModelError
from mpq.network.examples import Batch
from mpq.network.modules import device_of, share_parameters
from mpq.quantization.grid import integer_range
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity, TensorFormat

KINDS: Final = ("linear", "conv1d", "conv2d")
NUM_CHECKED: Final = 4
"""Examples that travel with the folder, to be checked on the device itself."""
MADE: Final = "c"


@final
@dataclass(frozen=True)
class C(Target):
    """A folder of C99 that computes a network in integers, in memory planned beforehand.

    Weights are packed in 2 to 8 bits, tensors between layers in the bits of the layer that reads
    them; sums of 32 bits become codes by an integer product and a shift, so that no floating point
    is needed. ReLUs, and the addition of a shortcut to a layer's sums, are a part of that layer.
    """

    name: ClassVar[str] = "c"
    summary: ClassVar[str] = "C99 without floating point, for microcontrollers"
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    readers: ClassVar[str] = "any C99 compiler; here cc or gcc, or what CC names"
    holds: ClassVar[str] = (
        "networks of linear layers and convolutions in one and two dimensions (strides, padding, "
        "dilation, groups), ReLU and ReLU6, maxima and means of windows, additions, cuts and "
        "padding: w2 to w8 per channel or tensor, symmetric, also of unlike channels (--split); "
        "inputs static in 2 to 8 bits; every layer in integers"
    )
    numerics: ClassVar[Numerics] = Numerics(scale_sign="positive")
    candidates: ClassVar[tuple[str, ...]] = (
        "w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w8a8", "w4a4", "w8a4",
    )  # fmt: skip
    tolerance: ClassVar[float] = 0.05
    # Half of the last bit behind the point of a sum, of biases as large as a code.
    last_digits: ClassVar[float] = 2.0 ** -(FRACTION + 1)
    judged: ClassVar[str] = MEDIAN
    needs_all: ClassVar[bool] = True
    holds_channels: ClassVar[bool] = True
    takes_batches: ClassVar[bool] = False
    needs_float32: ClassVar[bool] = True
    notes: ClassVar[tuple[str, ...]] = (
        "Compiled here and equal to an integer simulation bit for bit; the check travels with the "
        "folder. The simulation in floating point differs where a number lies between two codes.",
        "What the search measures leaves sums and shortcuts in floating point. On the device they "
        "are stored as the next layer reads them; the export's simulation rounds them as well.",
        "flash counts the constants, peak_ram the arena: the bytes of a compiled object. Code is "
        "a few kilobytes more, examples and outputs are the caller's.",
        "Kernels are plain loops: their time is not what a device's profile says of tuned ones.",
    )

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        weight, read = precision.weight, precision.activation
        if layer.kind not in KINDS or layer.is_transposed:
            found = "a matrix [I, O]" if layer.is_transposed else f"a layer of kind {layer.kind}"
            return f"it has kernels for {', '.join(KINDS)}, and this is {found}"
        if not _is_held(weight) or not weight.symmetric:
            return "it holds symmetric integers of 2 to 8 bits"
        if weight.granularity is Granularity.GROUP:
            return "its scales are of a channel, or of a whole weight"
        if not _is_held(read) or read.granularity is not Granularity.TENSOR:
            return "its inputs are integers of 2 to 8 bits with a static scale"
        return ""

    def module_refusal(self, module: nn.Module | None) -> str:
        """See ``Target.module_refusal``."""
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            padding = getattr(module, "padding_mode", "zeros")
            return "" if padding == "zeros" else f"it pads with zeros, and here with {padding}"
        if module is None:
            return f"in {self.name} it has no module of its own"
        return f"it knows Linear, Conv1d and Conv2d, and this is a {type(module).__name__}"

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``: whole bytes of codes, five for every scale, widths."""
        num_channels, num_inputs = rows_of(layer)
        weight = precision.weight
        num_codes = num_channels * num_inputs
        codes = -(-round(num_codes * weight.mean_bits) // 8)
        widths = 0 if weight.channels is None else num_channels
        return 8 * (codes + 5 * weight.num_scales(num_codes, num_channels) + widths)

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:  # noqa: ARG002
        """See ``Target.stored_kind``."""
        return f"{precision.weight.number.bits}-bit codes"

    def constant_bytes(self, tensor: Tensor) -> int:
        """See ``Target.constant_bytes``: a bias of 32 bits, whatever it came in."""
        return tensor.numel() * 4 if tensor.is_floating_point() else 0

    def header_bytes(self, folder: Path) -> int:  # noqa: ARG002
        """See ``Target.header_bytes``: there are none in flash."""
        return 0

    def file_bytes(self, folder: Path) -> int:
        """See ``Target.file_bytes``: the constants of the compiled object."""
        return _figures(folder)["flash_bytes"]

    def file_size(
        self,
        model: nn.Module,  # noqa: ARG002
        module: nn.Module,
        names: Collection[str],
    ) -> FileSize:
        """See ``SaysFileSize.file_size``: constants have no header, so that it is a sum."""
        return tensor_sizes(self, module, names)

    def figures(self, folder: Path) -> dict[str, int]:
        """See ``Target.figures``."""
        return _figures(folder)

    def reference(self, simulated: nn.Module, shipped: Shipped) -> nn.Module:  # noqa: ARG002
        """See ``Target.reference``: everything that is stored between two steps is rounded."""
        rounded: Rounded = shipped.made[MADE]
        return rounded

    def check_graph(self, searched: Searched) -> None:
        """See ``Traces.check_graph``: there is a kernel for every operation."""
        first = searched.examples[0].to(torch.device("cpu"))
        one_tensor(first)  # refuses others before torch does
        module = share_parameters(searched.network.module)
        if searched.network.device.type != "cpu":
            module = deepcopy(module).cpu()
        refuse_left_out(read_steps(exported(module, first.slice(0, 1))), searched.quantized)

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        data = shipped.calibration
        if data is None:
            raise InputError("the target c needs examples, for the ranges of sums and shortcuts")
        # Before anything else: without one, nothing would be tried.
        compiler()
        shipped = on_cpu(shipped)
        first = next(iter(data)).to(torch.device("cpu"))
        rounded = rounded_of(shipped, first)
        rounded.calibrate(data, shipped.assignment.weight_range)
        shipped.made[MADE] = rounded
        program = integer_program(shipped, rounded)
        inputs = input_codes(program, rounded, one_tensor(first)[:NUM_CHECKED])
        outputs, steps = told_steps(program, inputs)
        for name, text in texts(program, inputs, outputs).items():
            (folder / name).write_text(text, encoding="utf-8")
        told = {
            "output_shape": list(program.steps.output_shape),
            "layers": {
                str(n): w.weights.name for n, w in enumerate(program.works) if w.weights is not None
            },
            "steps": steps,
        }
        (folder / LAYERS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        return Compiled.of(folder)


def _is_held(tensor_format: TensorFormat) -> bool:
    """Whether there are kernels for its codes, which are read from bytes."""
    return tensor_format.is_scaled_integer and tensor_format.number.bits <= 8


def on_cpu(shipped: Shipped) -> Shipped:
    """The same on the CPU, where all of this is computed; the user's network stays where it is."""
    if device_of(shipped.module).type == "cpu":
        return shipped
    module, quantizer = deepcopy(shipped.module).cpu(), quantizer_of(shipped.assignment)
    return replace(shipped, module=module, quantizer=quantizer)


def rounded_of(shipped: Shipped, batch: Batch) -> Rounded:
    """The network as the target runs it, not calibrated yet.

    Args:
        shipped: All of its layers have integers.
        batch: One tensor of examples.

    Raises:
        ModelError: If the network does what the target has no kernel for.
    """
    layers = {x.name: x for x in shipped.assignment.layers}
    modules = {name: shipped.module.get_submodule(name) for name in layers}
    one_tensor(batch)  # refuses others before torch does
    program = exported(shipped.module, batch.slice(0, 1))
    return Rounded(program, layers, shipped.quantizer, modules)


def integer_program(shipped: Shipped, rounded: Rounded) -> Program:
    """The integers of a calibrated network."""
    layers = {x.name: x for x in shipped.assignment.layers}
    modules = {name: shipped.module.get_submodule(name) for name in layers}
    codes = {x.name: shipped.codes(x) for x in shipped.quantized}
    return program_of(rounded, codes, modules, layers)


def input_codes(program: Program, rounded: Rounded, examples: Tensor) -> Integers:
    """``[N, K]`` unsigned codes of examples, as the C function takes them."""
    grid = rounded.grids[program.steps.reads]
    codes = grid.codes(examples.detach().cpu().reshape(1, -1))
    lowest = integer_range(grid.number, grid.symmetric)[0]
    found = (codes - lowest).reshape(len(examples), -1).to(torch.int64)
    return np.asarray(found.numpy(), dtype=np.int64)


def _figures(folder: Path) -> dict[str, int]:
    """Bytes of the compiled network, by its symbols."""
    with TemporaryDirectory(prefix="mpq-c-") as place:
        made = compiled(folder, ("network.c",), Path(place, "network.o"), "-c")
        constants, variables = sections(run(["nm", "-S", str(made)]))
    if not constants:
        raise ModelError("c: nm tells no sizes of symbols: GNU binutils are needed to count bytes")
    return {"flash_bytes": constants, "ram_bytes": variables}
