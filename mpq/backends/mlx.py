"""MLX: the folders that mlx-lm runs on Apple's machines, and on processors with Linux."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor, nn

from mpq.backends.file_size import FileSize
from mpq.backends.half_precision import SCALE_DTYPES
from mpq.backends.hugging_face import FolderTarget, config_of, other_tensors, require, write_folder
from mpq.backends.mlx_trace import traced
from mpq.backends.runtime import Loaded
from mpq.backends.safetensors_size import safetensors_size
from mpq.backends.target import LayerShape, Shipped, not_linear, rows_of
from mpq.errors import InputError, ModelError
from mpq.network.examples import Batch
from mpq.network.modules import weight_of
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.codes import Codes, packed
from mpq.quantization.microscaling import block_scale_bits, element_bits, no_whole_blocks
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.tensor_format import Granularity

GROUP_SIZES: Final = (128, 64, 32)
"""Weights of a channel that share a scale in a file, the largest first."""
MODES: Final = ("mxfp4", "mxfp8", "nvfp4")
"""Number formats that are a mode of the tool's own, by the same name."""
CONTAINERS: Final = {2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}
"""Bits of a code, and of the place it is stored in."""


@final
@dataclass(frozen=True)
class Mlx(FolderTarget):
    """A folder whose layers are quantized each by its own entry of ``quantization``.

    The tool's affine mode has a scale and a bias for every group, ``w = scale * code + bias``, so
    that a zero point is the bias ``-scale * zero_point``. A scale of a channel, or of a group of
    another size, is repeated for groups of 128, 64 or 32. The microscaling formats are modes of
    their own, without biases; the tool's nvfp4 has no scale for the whole weight.

    Args:
        dtype: Of the network's parameters, in which the tool computes.
    """

    name: ClassVar[str] = "mlx"
    summary: ClassVar[str] = "folders of mlx-lm, for Apple's machines"
    extra: ClassVar[str] = "mlx"
    packages: ClassVar[tuple[str, ...]] = ("transformers", "mlx", "mlx_lm")
    readers: ClassVar[str] = "mlx-lm"
    holds: ClassVar[str] = (
        "linear and embedding layers of language models: w2 to w8, w2z to w8z, per tensor, channel "
        "or group, rows and groups of a multiple of 32; linear layers in mxfp4, mxfp8, nvfp4; "
        "inputs in floating point; all else as it came"
    )
    candidates: ClassVar[tuple[str, ...]] = (
        "w2g32", "w3g64", "wmxfp4", "wnvfp4", "w4g32", "w4g64", "w5g64", "w6g64", "wmxfp8", "w8g64",
    )  # fmt: skip
    # In float32, scales and biases of groups of 32 would be two more bits of every weight.
    numerics: ClassVar[Numerics] = Numerics(scale="fp16", tensor_scale="none")
    notes: ClassVar[tuple[str, ...]] = (
        "Scales are stored in fp16, also those of channels. Biases are exact in fp16 where weights "
        "are symmetric; with zero points they are stored in float32.",
        "A quantized embedding has float32 scales: in fp16 the tool would compute the whole "
        "network in fp16.",
        "w7 is stored in 8 bits. All else is stored and computed in the network's own dtype; of a "
        "network in half precision scales are, too, and the check runs in float32.",
        "nvfp4 has no scale for a whole weight here: scales of small weights are fp8's smallest "
        "numbers, which a search sees.",
        "Run here on a processor; Metal's kernels were not.",
    )

    def check_network(self, model: nn.Module) -> None:
        """See ``Target.check_network``."""
        _check_language_model(model, config_of(model, self.name)["model_type"])

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        weight, number = precision.weight, precision.weight.number
        if layer.kind != "embedding" and (why := not_linear(layer, self.name)):
            return why
        if not precision.activation.is_exact:
            return "it rounds no inputs"
        _, num_inputs = rows_of(layer)
        if number.name in MODES:
            if layer.kind == "embedding":
                return f"it gives rows of an embedding in {number.name} in bf16, whatever follows"
            return no_whole_blocks(weight, num_inputs)
        if number.is_float or number.bits not in CONTAINERS:
            return f"it holds integers of 2 to 8 bits, and no {number.name}"
        if weight.group_size and weight.group_size % 32:
            return f"its groups are of 32, 64 or 128, and {weight.group_size} is no multiple"
        return "" if num_inputs % 32 == 0 else f"{num_inputs} inputs are no whole groups of 32"

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``."""
        if precision.weight.number.name in MODES:
            return super().stored_bits(layer, precision)
        num_channels, num_inputs = rows_of(layer)
        group = stored_group(num_inputs, precision)
        scale, bias = self._dtypes(layer, precision)
        per_group = group * CONTAINERS[precision.weight.number.bits]
        per_group += 8 * (scale.itemsize + bias.itemsize)
        return num_channels * (num_inputs // group) * per_group

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.stored_kind``."""
        number = precision.weight.number
        if number.name in MODES:
            return _kind(number.bits, number.block, number.name)
        group = stored_group(rows_of(layer)[1], precision)
        return _kind(CONTAINERS[number.bits], group, "affine")

    def _dtypes(self, layer: LayerShape, precision: Precision) -> tuple[torch.dtype, torch.dtype]:
        """Of scales and biases."""
        is_half = self.dtype != torch.float32
        if layer.kind == "embedding" and not (is_half and precision.weight.symmetric):
            # What it gives has the dtype of its scales, and so has all that is computed from it.
            return torch.float32, torch.float32
        scale = SCALE_DTYPES[self.arithmetic.scale]
        # A power of two times a scale has the scale's digits; with a zero point there are up to 19.
        return scale, scale if precision.weight.symmetric else torch.float32

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        config = _config(shipped.model)
        tensors: dict[str, Tensor] = {}
        entries: dict[str, Any] = dict.fromkeys(_able(shipped.model), False)
        for layer in _stored_layers(shipped):
            tensors |= self._named(layer, shipped.codes(layer))
            entries[layer.name] = _entry(layer)
        replaced = {f"{layer.name}.weight" for layer in shipped.quantized}
        rest = dict(other_tensors(shipped.model, replaced))
        if tensors:
            first = next(entry for entry in entries.values() if entry)
            # Entries by name say it all; those beside them are what the tool asks for first.
            config["quantization"] = config["quantization_config"] = {**first, **entries}
        write_folder(folder, shipped.model, config, {**rest, **tensors})

    def file_size(
        self,
        model: nn.Module,
        module: nn.Module,  # noqa: ARG002
        names: Collection[str],
    ) -> FileSize:
        """See ``SaysFileSize.file_size``."""
        return safetensors_size(model, names, self._named)

    def _named(self, layer: AssignedLayer, codes: Codes) -> dict[str, Tensor]:
        """One layer's tensors, by their names in the file."""
        own = _tensors(layer, codes, self._dtypes(layer, layer.precision))
        return {f"{layer.name}.{key}": value for key, value in own.items()}

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        for package in ("mlx", "mlx_lm"):
            require(package, self.extra)
        from mlx_lm.utils import load_model

        # Without the tokenizer, which `mlx_lm.load` reads beside it.
        module, config = load_model(folder)
        if config.get("dtype") != "float32":
            import mlx.core as mx

            # What is compared is compared in float32, in which all that is stored is exact.
            module.set_dtype(mx.float32)
        return LoadedByMlx(module, bool(config.get("tie_word_embeddings")))


def _kind(bits: int, group_size: int, mode: str) -> str:
    """How kinds tell an entry of the configuration."""
    return f"{bits} bits, groups of {group_size}" + ("" if mode == "affine" else f", {mode}")


def stored_group(num_inputs: int, precision: Precision) -> int:
    """Weights that share a scale in the file: those that do in the precision, or a part of them."""
    wanted = precision.weight.group_size or num_inputs
    return next(s for s in GROUP_SIZES if wanted % s == 0 and num_inputs % s == 0)


def _tensors(
    layer: AssignedLayer, codes: Codes, dtypes: tuple[torch.dtype, torch.dtype]
) -> dict[str, Tensor]:
    """One layer's tensors, by their names within its module."""
    number = layer.precision.weight.number
    if number.name in MODES:
        stream = packed(element_bits(codes), number.bits)
        return {"weight": stream.view(torch.uint32), "scales": block_scale_bits(codes)}
    group = stored_group(codes.num_inputs, layer.precision)
    is_group = layer.precision.weight.granularity is Granularity.GROUP
    wanted = layer.precision.weight.group_size if is_group else codes.num_inputs
    assert wanted is not None
    # Which scale each of the stored groups has.
    places = torch.arange(0, codes.num_inputs, group) // wanted
    scale = codes.scale[:, places]
    bias = -scale * codes.unsigned_zero_points()[:, places]
    bits = CONTAINERS[layer.precision.weight.number.bits]
    scale_dtype, bias_dtype = dtypes
    return {
        "weight": packed(codes.unsigned(), bits).view(torch.uint32),
        "scales": scale.to(scale_dtype),
        "biases": bias.to(bias_dtype),
    }


def _entry(layer: AssignedLayer) -> dict[str, Any]:
    number = layer.precision.weight.number
    if number.name in MODES:
        return {"group_size": number.block, "bits": number.bits, "mode": number.name}
    _, num_inputs = rows_of(layer)
    bits = CONTAINERS[layer.precision.weight.number.bits]
    group = stored_group(num_inputs, layer.precision)
    return {"group_size": group, "bits": bits, "mode": "affine"}


def _config(model: nn.Module) -> dict[str, Any]:
    """``config.json``, of a network that mlx-lm has.

    Raises:
        ModelError: If it has none of the kind.
    """
    config = config_of(model, "mlx")
    for package in ("mlx", "mlx_lm"):
        require(package, Mlx.extra)
    _check_language_model(model, config["model_type"])
    return config | _older_names(config)


def _check_language_model(model: nn.Module, model_type: str) -> None:
    """Refuses networks that mlx-lm has not; where it is not installed, what it never has."""
    if not type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(
            f"mlx: mlx-lm runs language models, and {type(model).__name__} has no head of one"
        )
    if find_spec("mlx_lm") is None:
        return
    from mlx_lm.utils import MODEL_REMAPPING

    if find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(model_type, model_type)}") is None:
        raise ModelError(f"mlx: mlx-lm {version('mlx-lm')} has no {model_type!r} networks")


def _older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """What mlx-lm reads of rotary embeddings: as transformers 4 spelled it.

    Without these names the tool takes numbers of its own, and computes something else.
    """
    found = config.get("rope_parameters")
    if not found:
        return {}
    # Of networks whose layers are of two kinds there are two, by the kind.
    local, whole = found.get("sliding_attention"), found.get("full_attention", found)
    names: dict[str, Any] = {
        "rope_theta": whole.get("rope_theta"),
        "rope_local_base_freq": local and local.get("rope_theta"),
        "partial_rotary_factor": whole.get("partial_rotary_factor"),
        "rotary_emb_base": whole.get("rope_theta"),
        "rotary_pct": whole.get("partial_rotary_factor"),
    }
    if whole.get("rope_type", "default") != "default":
        names["rope_scaling"] = dict(whole)
    return {name: value for name, value in names.items() if value is not None}


def _able(model: nn.Module) -> list[str]:
    """Names of the layers that the tool could quantize, whether they are or not."""
    return [n for n, part in model.named_modules() if isinstance(part, nn.Linear | nn.Embedding)]


def _stored_layers(shipped: Shipped) -> list[AssignedLayer]:
    """Quantized layers, of those that share a parameter the embedding alone.

    Raises:
        ModelError: If one is no module of the network, or shares its weight with one that is not
            quantized alike.
    """
    named, by_name = set(_able(shipped.model)), {x.name: x for x in shipped.quantized}
    for name in by_name:
        if name not in named:
            raise ModelError(f"mlx: {name!r} is no linear or embedding layer of the tool's")
    sharing: dict[int, list[str]] = {}
    for name, part in shipped.model.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            sharing.setdefault(id(weight_of(part)), []).append(name)
    found: list[AssignedLayer] = []
    for names in sharing.values():
        quantized = [name for name in names if name in by_name]
        if not quantized:
            continue
        if quantized != names:
            left = next(name for name in names if name not in by_name)
            raise ModelError(
                f"mlx: {quantized[0]!r} shares its weight with {left!r}, which stays as it came; "
                "the tool has one of both"
            )
        found.append(by_name[min(names, key=lambda name: by_name[name].kind != "embedding")])
    return found


@final
@dataclass(frozen=True, eq=False)
class LoadedByMlx:
    """See ``mpq.backends.runtime.Loaded``.

    Args:
        module: A network of mlx-lm.
        is_tied: Whether its embedding is its last layer, too.
    """

    module: Any
    is_tied: bool

    @property
    def versions(self) -> Mapping[str, str]:
        """See ``Loaded.versions``."""
        return {name: version(name) for name in ("mlx", "mlx-lm")}

    @property
    def kinds(self) -> Mapping[str, str]:
        """See ``Loaded.kinds``."""
        found: dict[str, str] = {}
        for name, part in self._quantized().items():
            found[name] = f"{type(part).__name__} {_kind(part.bits, part.group_size, part.mode)}"
            if self.is_tied and "Embedding" in type(part).__name__:
                found["lm_head"] = found[name]
        return found

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """See ``Loaded.weights``."""
        import mlx.core as mx
        import numpy as np

        found: dict[str, Tensor] = {}
        for name, part in self._quantized().items():
            is_affine = part.mode == "affine"
            decoded = mx.dequantize(
                part.weight,
                # In float32, as the kernels compute whose inputs are.
                part.scales.astype(mx.float32) if is_affine else part.scales,
                part.biases.astype(mx.float32) if is_affine else None,
                group_size=part.group_size,
                bits=part.bits,
                mode=part.mode,
                dtype=mx.float32,
            )
            found[name] = torch.from_numpy(np.array(decoded))
            if self.is_tied and "Embedding" in type(part).__name__:
                found["lm_head"] = found[name].clone()
        return found

    def run(self, batch: Batch) -> Tensor:
        """See ``Loaded.run``.

        Raises:
            InputError: If the network is given more than token ids.
        """
        import mlx.core as mx
        import numpy as np

        out = self.module(mx.array(_token_ids(batch).numpy()))
        return torch.from_numpy(np.array(out.astype(mx.float32)))

    def traced(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Traceable.traced``."""
        return traced(self.module, "lm_head" if self.is_tied else "", partial(self.run, batch))

    def _quantized(self) -> dict[str, Any]:
        return {name: part for name, part in self.module.named_modules() if "scales" in part}


def _token_ids(batch: Batch) -> Tensor:
    given = dict(batch.kwargs)
    ids = batch.args[0] if batch.args else given.pop("input_ids", None)
    mask = given.pop("attention_mask", None)
    more = [*map(str, range(1, len(batch.args))), *(k for k, v in given.items() if v is not None)]
    if mask is not None and not bool((torch.as_tensor(mask) == 1).all()):
        more.append("attention_mask (with zeros)")
    if more or not isinstance(ids, Tensor):
        raise InputError(
            "mlx: mlx-lm's networks read token ids alone (input_ids)"
            + (f", and the examples have {', '.join(more)}" if more else "")
        )
    return ids
