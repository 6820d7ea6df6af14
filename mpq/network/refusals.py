"""What cannot be searched, and what to do instead: a sentence for each kind.

A network as a whole is refused at once, a part of it only where it is not excluded. Other
packages' classes are known by name: none of them need be installed.
"""

import re
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, fx, nn

from mpq.errors import ModelError

_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_PACKED: Final = re.compile(
    r"Linear(8bitLt|4bit|NF4|FP4)|\w*QuantLinear\w*|WQLinear\w*|HQQLinear|QLinear|QConv2d|QEmbedding|"
    r"Quantized(Linear|Conv|Embedding)\w*|(Eetq|Fbgemm\w*|FP8|Higgs|Compressed|Bit|AutoBit|W8A16|SpQR)Linear"
)
"""Classes with packed weights: bitsandbytes, GPTQ, AWQ, HQQ, AQLM, quanto, EETQ, FBGEMM and so on;
of their names only those that hold no float weight, as simulations are called so, too."""
_TORCH_QUANTIZED: Final = re.compile(r"torch\.(ao\.)?nn\.(\w+\.)?quantized\b")
_SIMULATED: Final = "_mpq_precision"
"""Attribute of a layer of our own that computes in a precision; copies and files keep it."""
_FAKE_QUANTIZERS: Final = ("FakeQuantizeBase", "FakeQuantizerBase", "FakeQuantizer")
"""Base classes of fake quantization: torch's own, torchao's, and torchao's before 0.13."""
_OBSERVERS: Final = (*_FAKE_QUANTIZERS, "ObserverBase", "AffineQuantizedObserverBase")
"""Base classes of what a network that is prepared for quantization holds beside its layers."""
_SIMULATORS: Final = re.compile(
    r"(brevitas|modelopt|pytorch_quantization|nncf|aimet_torch|mqbench|quark|neural_compressor|"
    r"mct_quantizers)\..*quant(?!um)",
    re.IGNORECASE,
)
"""Packages whose modules round floats to floats, and the word in the names of those that do."""
_OFF: Final = (
    ("disable_quant", True), ("_disabled", True), ("is_quant_enabled", False),
    ("is_enabled", False), ("enabled", False)
)  # fmt: skip
"""Their switches, with the value that says that a module does not round."""
_UNFLATTENED: Final = ("UnflattenedModule", "InterpreterModule", "InterpreterModuleDispatcher")


def mark_simulated(layer_module: nn.Module, precision: str) -> None:
    """Says of a layer of our own that its float weight holds rounded numbers."""
    vars(layer_module)[_SIMULATED] = precision


def simulated(name: str, module: nn.Module) -> str | None:
    """Why a layer that ``mpq.quantize`` has made is no float layer, if it is one."""
    precision = vars(module).get(_SIMULATED)
    return None if precision is None else _quantized(name, f"{precision}, as mpq.quantize made it")


def is_readable(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers as floats; not in a code of its own or spread out."""
    is_plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return is_plain and (tensor.is_complex() or tensor.dtype in _FLOATS)


def foreign_program(model: object) -> str | None:
    """Why something that is no module is none, if it is a program made from one."""
    if type(model).__name__ == "ExportedProgram":
        return (
            "this is an exported program, in which layers are no longer modules; give the "
            "nn.Module that was exported"
        )
    return None


def check_program(model: nn.Module) -> None:
    """Refuses a model that is a program made from a model.

    Raises:
        ModelError: If it is TorchScript, or was exported by ``torch.export``.
    """
    why = _program(model)
    if why:
        raise ModelError(f"the model is {why}; give the nn.Module that it was made from")


def check_unprepared(modules: Mapping[str, nn.Module]) -> None:
    """Refuses a network that rounds by itself, as one prepared for quantization-aware training.

    Args:
        modules: Name to module of the model.

    Raises:
        ModelError: If a module for fake quantization is switched on; names the first one.
    """
    simulating = _simulating(modules)
    if simulating is not None:
        kind = type(modules[simulating])
        raise ModelError(
            f"the model is fake-quantized already: {simulating or 'the model itself'!r} "
            f"({kind.__module__}.{kind.__qualname__}) rounds in every pass, so that precisions "
            "would be tried on rounded numbers. Search the float network that it was made from, "
            "or switch its quantizers off"
        )
    name = next((name for name, module in modules.items() if _is_rounding(module)), None)
    if name is None:
        return
    found = type(modules[name])
    switch = "set enabled = False on every such module"
    if not found.__module__.startswith("torchao."):
        off = "model.apply(torch.ao.quantization.disable_{})"
        switch = f"{off.format('fake_quant')} and {off.format('observer')}"
    raise ModelError(
        f"the model is prepared for quantization-aware training: {name!r} ({found.__name__}) "
        "rounds, or observes what it will round by, in every pass. Search the float network: load "
        f"these weights into the network that was prepared, or switch all that off: {switch}"
    )


def is_observer(module: nn.Module) -> bool:
    """Whether a module keeps what it has seen for a conversion, which takes it away again."""
    return any(kind.__name__ in _OBSERVERS for kind in type(module).__mro__)


def _simulating(modules: Mapping[str, nn.Module]) -> str | None:
    """The first module of another package that rounds what it computes, by its outermost name."""
    # What a module's children are called begins so.
    found = {n: f"{n}." if n else "" for n, module in modules.items() if _is_simulator(module)}
    off = tuple(inside for name, inside in found.items() if _is_off(modules[name]))
    for name in found:
        # A layer's quantizers, where it has some, say whether it rounds.
        has_own = any(other != name and other.startswith(found[name]) for other in found)
        if not has_own and not f"{name}.".startswith(off):
            return next(n for n, inside in found.items() if f"{name}.".startswith(inside))
    return None


def _is_simulator(module: nn.Module) -> bool:
    kinds = type(module).__mro__
    return any(_SIMULATORS.match(f"{kind.__module__}.{kind.__name__}") for kind in kinds)


def _is_off(module: nn.Module) -> bool:
    # A buffer of one number, or an attribute; some packages have methods of these names.
    states = [(getattr(module, switch, None), off) for switch, off in _OFF]
    return any(
        (isinstance(x, bool) or (isinstance(x, Tensor) and x.numel() == 1)) and bool(x) == off
        for x, off in states
    )


def _is_rounding(module: nn.Module) -> bool:
    """Whether a module is torch's or torchao's fake quantization, and switched on."""
    if not any(kind.__name__ in _FAKE_QUANTIZERS for kind in type(module).__mro__):
        return False
    # A buffer of one number at torch, an attribute at torchao.
    switches = ("fake_quant_enabled", "observer_enabled", "enabled")
    return any(bool(getattr(module, switch, False)) for switch in switches)


def refusal(name: str, module: nn.Module) -> str | None:
    """Why a module cannot be searched whatever the data, if so: packed, or a program in itself."""
    why = _program(module)
    if why is None:
        packed = _quantized(name, type(module).__name__) if _is_packed(module) else None
        return packed or simulated(name, module)
    # Without matrices there is nothing in it that could be quantized: a tokenizer, a resize.
    if all(p.ndim < 2 for p in module.parameters()):
        return None
    return f"{name!r} is {why}; give the nn.Module that it was made from, or {_excluded(name)}"


def is_program(module: nn.Module) -> bool:
    """Whether a module is a program in itself: TorchScript, or exported."""
    return _program(module) is not None


def refused_modules(module: nn.Module) -> Mapping[str, str]:
    """Name to sentence, of the outermost of such modules."""
    found: dict[str, str] = {}
    for name, each in module.named_modules():
        if not any(name.startswith(f"{outer}.") for outer in found):
            why = refusal(name, each)
            found |= {name: why} if why else {}
    return found


def weight_refusal(name: str, layer_module: nn.Module) -> str | None:
    """Why a layer's weight cannot be rounded, if so."""
    weight = layer_module.weight
    if not isinstance(weight, Tensor):
        return f"layer {name!r} has no tensor as its weight; {_excluded(name)}"
    kind = type(weight)
    if weight.is_complex():
        return (
            f"the weight of layer {name!r} is complex ({weight.dtype}), and formats hold real "
            f"numbers; write the layer out for its real and imaginary parts, or {_excluded(name)}"
        )
    if not is_readable(weight):
        how = str(weight.dtype) if kind in (Tensor, nn.Parameter) else kind.__name__
        return _quantized(name, how)
    if not isinstance(weight, nn.Parameter):
        return (
            f"the weight of layer {name!r} is not a parameter but computed anew or a buffer; make "
            f"it an nn.Parameter, or {_excluded(name)}"
        )
    return None


def _excluded(name: str) -> str:
    return f"leave it out: --exclude {name!r}"


def _quantized(name: str, how: str) -> str:
    advice = "search the float network that it was made from"
    if not name:
        return f"the model is quantized already ({how}); {advice}"
    return f"layer {name!r} is quantized already ({how}); {advice}, or {_excluded(name)}"


def _program(module: nn.Module) -> str | None:
    """What kind of program a module is, in which layers are no modules."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript, whose layers cannot be observed or replaced"
    if type(module).__name__ in _UNFLATTENED or _is_exported(module):
        return "an exported program, in which layers are no longer modules"
    return None


def _is_exported(module: nn.Module) -> bool:
    """Whether a graph calls torch's operators themselves; one of ``fx.symbolic_trace`` does not."""
    if not isinstance(module, fx.GraphModule):
        return False
    return any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes)


def _is_packed(module: nn.Module) -> bool:
    """Whether a module holds its weight as codes, by its class or by the tensors in it."""
    own = {*module._parameters, *module._buffers, *module._modules, *vars(module)}
    if any(_TORCH_QUANTIZED.match(kind.__module__) for kind in type(module).__mro__):
        # Functions and references for quantization-aware training live there too.
        return any("packed" in name or name == "_all_weight_values" for name in own)
    if "qweight" in own:
        return True
    by_name = any(_PACKED.fullmatch(kind.__name__) for kind in type(module).__mro__)
    return by_name and not any(_is_float_weight(*named) for named in module.named_parameters())


def _is_float_weight(name: str, parameter: Tensor) -> bool:
    # Of that very class: bitsandbytes' parameters are floats until they are moved to a GPU.
    is_plain = type(parameter) is nn.Parameter and is_readable(parameter)
    return is_plain and parameter.ndim > 1 and name.rpartition(".")[2] == "weight"
