"""The key-value cache of compressed-tensors: one scheme for a network, and a scale for each half.

A file has ``kv_cache_scheme`` in its configuration and ``k_scale`` and ``v_scale`` beside every
attention's weights, as vLLM reads them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from mpq.backends.compressed_tensors_layout import arguments_of
from mpq.backends.input_grid import input_grid
from mpq.backends.target import Shipped
from mpq.errors import PrecisionError
from mpq.network.layer import CACHES, UNROTATED_KEYS
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.tensor_format import Granularity

SCHEME: Final = "kv_cache_scheme"
SCALES: Final = {"k_cache": "k_scale", "v_cache": "v_scale"}
"""Kind of a layer to the tensor that its file has."""
HELD: Final = ("int8", "fp8_e4m3")
NAMES: Final = r".*\.[kv]_scale"
"""Tensors that transformers 5.24 knows no place for, as a regular expression."""


def cache_refusal(precision: Precision) -> str:
    """Why a cache cannot be held; empty where it can."""
    held = precision.activation
    is_static = held.granularity is Granularity.TENSOR and held.symmetric
    if is_static and held.number.name in HELD:
        return ""
    return "its key-value cache has one calibrated scale, without a zero point: a8s or afp8"


def cache_ties(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """All caches of a network, which have one scheme."""
    found = tuple(name for name in names if name.rpartition(".")[2] in CACHES)
    return (found,) if len(found) > 1 else ()


def caches_of(shipped: Shipped) -> list[AssignedLayer]:
    """Caches that are quantized: all of a network, or none.

    Raises:
        PrecisionError: If some are and others not, tokens are kept as they came, or keys are held
            before their rotation.
    """
    layers = shipped.assignment.layers
    found = [x for x in layers if x.kind in CACHES and x.precision != ORIGINAL]
    if not found:
        return []
    kept = shipped.assignment.tokens_kept
    if kept.first or kept.window:
        raise PrecisionError(
            "compressed-tensors rounds the keys and values of every token, and the assignment "
            f"keeps the first {kept.first} and the last {kept.window}: search without --kv-first "
            "and --kv-window"
        )
    if any(x.kind == UNROTATED_KEYS for x in found):
        raise PrecisionError(
            "compressed-tensors holds keys after their rotation, and the assignment before it: "
            "search without --kv-before-rotation"
        )
    held = {x.name for x in found}
    kinds = {type(shipped.model.get_submodule(_attention(name))) for name in held}
    for name, part in shipped.model.named_modules():
        left = [f"{name}.{kind}" for kind in SCALES if f"{name}.{kind}" not in held]
        if type(part) in kinds and left:
            raise PrecisionError(
                "compressed-tensors has one scheme for all keys and values of a network, and "
                f"{left[0]!r} stays as it came: search with all of them"
            )
    return found


def cache_tensors(caches: list[AssignedLayer], dtype: torch.dtype) -> dict[str, Tensor]:
    """Scales by their names in the file, in the dtype of the network, as the tool makes them."""
    return {
        f"{_attention(layer.name)}.{SCALES[layer.kind]}": input_grid(layer).scale.to(dtype)
        for layer in caches
    }


def cache_scheme(caches: list[AssignedLayer]) -> dict[str, Any]:
    """What the configuration says of them; nothing where they stay as they came."""
    if not caches:
        return {}
    return {SCHEME: arguments_of(caches[0].precision.activation, dynamic=False)}


def round_caches(module: nn.Module, folder: Path) -> None:
    """Makes a network that was loaded round its keys and values as the file says, in place.

    With the tool's own functions, called here: compressed-tensors 0.20 calls them itself where an
    attention's argument is ``past_key_values``, which transformers 5.24 calls ``cache``.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told = config["quantization_config"].get(SCHEME)
    if told is None:
        return
    from compressed_tensors.modeling import initialize_hooked_kv_cache
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from safetensors import safe_open

    scheme = QuantizationScheme(targets=[], input_activations=QuantizationArgs(**told))
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = [n for n in file.keys() if n.endswith(tuple(SCALES.values()))]  # noqa: SIM118
        scales = {name: file.get_tensor(name) for name in names}
    for name in dict.fromkeys(map(_attention, scales)):
        attention: Any = module.get_submodule(name)
        attention.quantization_scheme = scheme
        attention.register_forward_pre_hook(_hide_cache, with_kwargs=True)
        initialize_hooked_kv_cache(module, attention)
        attention.register_forward_pre_hook(_show_cache, with_kwargs=True)
        for scale in SCALES.values():
            number = scales[f"{name}.{scale}"].float()
            attention.register_parameter(scale, nn.Parameter(number, requires_grad=False))


def _hide_cache(
    _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The cache by the name that the tool looks for."""
    left = dict(kwargs)
    return args, left | {"past_key_value": left.pop("cache", None)}


def _show_cache(
    _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The tool's own in its place, by the name that transformers looks for."""
    left = dict(kwargs)
    return args, left | {"cache": left.pop("past_key_value")}


def _attention(name: str) -> str:
    return name.rpartition(".")[0]
