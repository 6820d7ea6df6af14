"""Every model class of the installed transformers, as small as its configuration lets it be.

Nothing is downloaded: a model is made from its configuration's own defaults with small numbers of
layers, channels, tokens and pixels, and its inputs from what its ``forward`` asks for.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from scripts.zoo_inputs import IMAGE, batches_of

MAX_PARAMETERS: Final = 3_500_000
VOCABULARY: Final = 128
FIRST_SPECIAL: Final = 100
"""Ids from here on are special: of images, audio, masks. Inputs have none of them."""

IS_MAPPING: Final = re.compile(r"MODEL_\w*MAPPING_NAMES")
LAYERS: Final = re.compile(
    r"(num_|n_)?((encoder|decoder|hidden|text|vision|transformer|num|local|global)_)*"
    r"(layers?|layer|blocks|hidden_layers|depth)|depth|num_hidden_layers|n_layer|num_stacks"
)
HEADS: Final = re.compile(r"\w*(attention_heads|num_heads|n_heads?|linear_num_\w*heads)")
WIDTHS: Final = re.compile(
    r"(\w+_)?(hidden_size|d_model|n_embd|embed_dim|embedding_size|embedding_dim|hidden_dim|emb_dim|"
    r"projection_dim|embed_proj_dim|output_dim|proj_size|out_hidden_size|output_hidden_size|"
    r"decoder_dim|channels_dim|dim|pooler_output_size|latent_dim|width)"
)
WIDE: Final = re.compile(
    r"(\w+_)?(intermediate_size|ffn_dim|d_ff|ffn_hidden_size|mlp_dim|d_inner|inner_dim|n_inner|"
    r"feedforward_dim|ff_dim)"
)
MANY_WIDTHS: Final = re.compile(r"(\w+_)?(hidden_sizes|embed_dims?|conv_dim|tdnn_dim)")
SPECIAL: Final = re.compile(r"\w*(token_id|token_index|_id|_index|_ids)")
FIXED: Final[Mapping[str, Any]] = {
    "vocab_size": VOCABULARY,
    "codebook_size": VOCABULARY,
    "head_dim": 16,
    "d_kv": 16,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "qk_head_dim": 32,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_source_positions": 32,
    "max_target_positions": 64,
    "image_size": IMAGE,
    "patch_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "n_group": 1,
    "num_expert_group": 1,
    "mamba_headdim": 8,
    "topk_group": 1,
    "num_queries": 8,
    "num_mel_bins": 16,
    "num_filters": 16,
    "num_conv_pos_embedding_groups": 4,
    "num_conv_pos_embeddings": 16,
    "classifier_proj_size": 32,
    "window_size": 2,
    "projection_size": 32,
    "rotary_dim": 8,
    "coordinate_size": 6,
    "shape_size": 4,
}
"""Numbers that are given; everything else follows from the patterns above, or stays."""
MISSING: Final[Mapping[str, Any]] = {
    "head_dim": 16,
    "n_routed_experts": 4,
    "num_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_hidden_size": 32,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
"""Fields that are ``None`` by default in some configurations, whose models need a number."""
ROTARY: Final[Mapping[str, Any]] = {
    "rope_type": "default",
    "rope_theta": 10_000.0,
    "mrope_section": [4, 2, 2],
}
"""Of rotary positions: the sections are together half of a head."""


@dataclass(frozen=True)
class Sizes:
    """How small a configuration is made.

    Args:
        is_narrow: Whether channels and heads are few as well, not only layers, tokens and pixels.
        width: Of channels, where narrow.
        heads: Of attention, where narrow.
        key_heads: Of keys and values, where narrow.
        layers: How many.
        fills: Whether what is ``None`` but needed gets a number.
    """

    is_narrow: bool = True
    width: int = 32
    heads: int = 2
    key_heads: int = 1
    layers: int = 2
    fills: bool = False


WAYS: Final = (
    Sizes(),
    Sizes(key_heads=2),
    Sizes(key_heads=2, fills=True),
    Sizes(key_heads=2, layers=4),
    Sizes(key_heads=2, layers=4, fills=True),
    Sizes(width=64, heads=4, key_heads=2),
    Sizes(is_narrow=False),
)
"""In this order, until one's numbers fit each other."""


@dataclass(frozen=True)
class Entry:
    """One model class.

    Args:
        name: Of the class, such as ``BertForMaskedLM``.
        model_type: Of its configuration, such as ``bert``.
    """

    name: str
    model_type: str


@dataclass(frozen=True)
class Built:
    """A tiny model that runs.

    Args:
        model: In evaluation mode, from a fixed seed.
        batches: Three of them, by name of input.
    """

    model: nn.Module
    batches: tuple[dict[str, Any], ...]


class NotBuiltError(Exception):
    """A class that cannot be made tiny, or whose inputs are not known here."""


class PackageMissingError(NotBuiltError):
    """A class that needs a package that is not installed."""


def entries() -> list[Entry]:
    """All classes that the automatic classes of transformers know, by name."""
    from transformers.models.auto import modeling_auto

    mappings = (v for k, v in vars(modeling_auto).items() if IS_MAPPING.fullmatch(k))
    pairs = (pair for mapping in mappings for pair in mapping.items())
    found: dict[str, str] = {}
    for model_type, names in pairs:
        for name in (names,) if isinstance(names, str) else names:
            found.setdefault(name, model_type)
    return [Entry(name, found[name]) for name in sorted(found)]


def build(entry: Entry) -> Built:
    """The model of a class, and inputs that it takes.

    Raises:
        PackageMissingError: If it needs a package that is not installed.
        NotBuiltError: If it cannot be made small, or takes none of the inputs known here.
    """
    import transformers

    kind = getattr(transformers, entry.name, None)
    config_class = getattr(kind, "config_class", None)
    if config_class is None:
        raise NotBuiltError("no such class, or it has no configuration")
    first: Exception | None = None
    for sizes in WAYS:
        try:
            return _built(kind, config_class, sizes)
        except ImportError as error:
            raise PackageMissingError(" ".join(str(error).split())[:160]) from None
        # Whatever a class of transformers raises says only that these numbers do not fit it.
        except Exception as error:
            first = first or error
    raise NotBuiltError(f"{type(first).__name__}: {' '.join(str(first).split())}"[:160])


def _built(kind: Any, config_class: Any, sizes: Sizes) -> Built:
    config = config_class(**tiny(config_class().to_dict(), sizes))
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotBuiltError(f"its smallest has {size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).eval().float()
    return Built(model, batches_of(model, config))


def tiny(values: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """A configuration's numbers, made small; sub-configurations alike.

    Args:
        values: As ``config.to_dict()`` has them.
        sizes: How small.
    """
    dropped = {"transformers_version", "label2id", "out_features", "stage_names"}
    specials = itertools.count(FIRST_SPECIAL)
    return {
        key: _small(key, value, sizes, specials)
        for key, value in values.items()
        if key not in dropped and not key.startswith("_")
    }


def _small(key: str, value: Any, sizes: Sizes, specials: Iterator[int]) -> Any:
    if value is None:
        return _filled(key, sizes)
    if isinstance(value, dict):
        is_config = key.endswith("_config") or key in ("encoder", "decoder", "generator")
        return tiny(value, sizes) if is_config else _rotary(key, value, sizes)
    if isinstance(value, list | tuple) and value:
        return _small_list(key, list(value), sizes, specials)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if SPECIAL.fullmatch(key):
        return value if value < FIRST_SPECIAL else next(specials)
    return min(value, _limit(key, sizes)) if value > 0 else value


def _filled(key: str, sizes: Sizes) -> Any:
    if key == "pad_token_id":
        return 0  # without it, heads that classify sequences take one example at a time
    if not sizes.fills:
        return None
    return _rotary(key, {}, sizes) or MISSING.get(key)


def _rotary(key: str, value: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """Of positions in three sections, which fit the size of a head; others as they are."""
    is_rotary = key in ("rope_parameters", "rope_scaling") and sizes.is_narrow
    if not is_rotary or not ("mrope_section" in value or sizes.fills):
        return value
    # A share of a head may be all that is turned.
    share = value.get("partial_rotary_factor") or 1.0
    sections = [int(share * section) for section in ROTARY["mrope_section"]]
    return {**ROTARY, **value, "mrope_section": sections}


def _limit(key: str, sizes: Sizes) -> int:
    """The largest number that a field may have."""
    always = ("vocab", "codebook_size", "image_size", "max_", "n_positions", "num_queries", "exp")
    if key == "num_key_value_heads" and sizes.is_narrow:
        return sizes.key_heads
    if key in FIXED and (sizes.is_narrow or key.startswith(always) or "experts" in key):
        return int(FIXED[key])
    if "vocab_size" in key:
        return VOCABULARY
    if LAYERS.fullmatch(key):
        return sizes.layers
    if not sizes.is_narrow:
        return 1 << 62
    if HEADS.fullmatch(key):
        return sizes.heads
    if WIDE.fullmatch(key):
        return 2 * sizes.width
    return sizes.width if WIDTHS.fullmatch(key) else 1 << 62


def _small_list(key: str, value: list[Any], sizes: Sizes, specials: Iterator[int]) -> Any:
    if key.endswith(("layer_types", "_block_type")):
        # Layers of two kinds if there are two.
        kinds = [value[0], next((kind for kind in value if kind != value[0]), value[-1])]
        return [kinds[i % 2] for i in range(sizes.layers)]
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in value):
        return value
    if key.endswith("out_indices"):
        # As many as before, if there are as many layers; layer 0 of a backbone is its stem.
        first, count = int(key == "out_indices"), min(len(value), sizes.layers)
        return list(range(first, first + count))
    if key in ("depths", "layers_per_stage", "stage_num_blocks"):
        return [1] * len(value)
    if key == "image_size":
        return [min(x, IMAGE) for x in value]
    if SPECIAL.fullmatch(key):
        return [x if x < FIRST_SPECIAL else next(specials) for x in value]
    if sizes.is_narrow and MANY_WIDTHS.fullmatch(key):
        return [min(x, sizes.width) for x in value]
    is_heads = sizes.is_narrow and HEADS.fullmatch(key)
    return [min(x, sizes.heads) for x in value] if is_heads else value
