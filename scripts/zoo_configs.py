"""A configuration of transformers made small: few layers, channels, tokens and pixels."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scripts.zoo_inputs import IMAGE

VOCABULARY: Final = 128
CHUNK: Final = 8
NO_LIMIT: Final = 1 << 62
FIRST_SPECIAL: Final = 100
"""Ids from here on are special: of images, audio, masks. Inputs have none of them."""

LAYERS: Final = re.compile(
    r"(num_|n_)?((encoder|decoder|hidden|text|vision|transformer|num|local|global)_)*"
    r"(layers?|layer|blocks|hidden_layers|depth)|depth|num_hidden_layers|n_layer|num_stacks|"
    r"num_layers_per_stack"
)
LAYER_INDICES: Final = re.compile(
    r"\w*(layer_ids|hook_ids|feature_layers?|attn_indexes|attention_blocks)"
)
"""Lists of which layers; ``out_indices`` count from their own start."""
DEPTHS: Final = ("depths", "layers_per_stage", "stage_num_blocks", "num_block_repeats")
"""Lists of numbers of layers, stage by stage."""
STAGES: Final = 4
"""A list as long as this has an entry for each stage rather than for each layer."""
UNCHANGED: Final = re.compile(
    r"\w*(rate|ratio|factor|stride|kernel|size_divisor|padding|dilation|context|length|seed|theta|"
    r"window|period|keypoint|context|chunk|hop|position_embeddings|positions|num_groups)\w*"
)
"""What is no width, however large."""
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
    "moe_k": 2,
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
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "sliding_window": 8,
    "prediction_length": 4,
    "context_length": 16,
    "vocabulary_map": {"<image>": FIRST_SPECIAL},
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
        divisor: Of every width, whatever its name, where not 1: what fits each other, such as
            channels in and out, still does. Heads stay as they are. Where narrow, widths of
            unknown names are ``width`` as well.
    """

    is_narrow: bool = True
    width: int = 32
    heads: int = 2
    key_heads: int = 1
    layers: int = 2
    fills: bool = False
    divisor: int = 1


WAYS: Final = (
    Sizes(),
    Sizes(key_heads=2),
    Sizes(key_heads=2, fills=True),
    Sizes(key_heads=2, layers=4),
    Sizes(key_heads=2, layers=4, fills=True),
    Sizes(width=64, heads=4, key_heads=2),
    Sizes(is_narrow=False),
    Sizes(is_narrow=False, divisor=8),
    Sizes(is_narrow=False, divisor=16, fills=True),
    Sizes(is_narrow=False, divisor=32),
    Sizes(is_narrow=False, divisor=16),
    Sizes(key_heads=2, layers=8),
    Sizes(key_heads=2, fills=True, divisor=8),
)
"""In this order, until one's numbers fit each other."""


def tiny(values: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """A configuration's numbers, made small; sub-configurations alike.

    Args:
        values: As ``config.to_dict()`` has them.
        sizes: How small.
    """
    dropped = {"transformers_version", "label2id", "out_features", "stage_names"}
    specials = itertools.count(FIRST_SPECIAL)
    depth = next((v for k, v in values.items() if LAYERS.fullmatch(k)), None)
    short = {
        # One entry for each layer.
        key: value[: sizes.layers] if _is_by_layer(key, value, depth) else value
        for key, value in values.items()
    }
    stages = max((len(values[key]) for key in DEPTHS if values.get(key)), default=0)
    return {
        key: value if _is_of_stages(key, value, stages) else _small(key, value, sizes, specials)
        for key, value in short.items()
        if key not in dropped and not key.startswith("_")
    }


def _is_of_stages(key: str, value: Any, stages: int) -> bool:
    """Whether a list says which stages are seen: all of them stay."""
    return key == "out_indices" and bool(value) and max(value) <= stages


def _is_by_layer(key: str, value: Any, depth: Any) -> bool:
    is_kinds = key.endswith(("layer_types", "_block_type"))
    is_list = isinstance(value, list | tuple) and len(value) == depth
    return is_list and len(value) > STAGES and not is_kinds


def _small(key: str, value: Any, sizes: Sizes, specials: Iterator[int]) -> Any:
    if value is None:
        return _filled(key, sizes)
    if isinstance(value, dict):
        return _small_dict(key, value, sizes)
    if isinstance(value, list | tuple) and value:
        return _small_list(key, list(value), sizes, specials)
    if key.endswith("_coefficient") and isinstance(value, float):
        return min(value, 1.0)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if SPECIAL.fullmatch(key):
        return value if value < FIRST_SPECIAL else next(specials)
    return _number(key, value, sizes)


def _number(key: str, value: int, sizes: Sizes) -> int:
    if value <= 0:
        return value
    if key == "chunk_size":  # of a scan: sequences this short are filled up to one
        return min(value, CHUNK)
    limit = _limit(key, sizes)
    is_width = limit == NO_LIMIT and sizes.divisor > 1 and value >= 32
    if is_width and not HEADS.fullmatch(key) and not UNCHANGED.fullmatch(key):
        if sizes.is_narrow:
            return min(value, sizes.width)
        exact, rest = divmod(value, sizes.divisor)
        return max(4, exact if not rest else 8 * round(exact / 8))
    return min(value, limit)


def _small_dict(key: str, value: dict[str, Any], sizes: Sizes) -> Any:
    if key.startswith("per_layer"):
        kept = {k: v for k, v in value.items() if int(k) < sizes.layers}
        return {k: tiny(v, sizes) for k, v in kept.items()}
    is_config = key.endswith("_config") or key in ("encoder", "decoder", "generator")
    return tiny(value, sizes) if is_config else _rotary(key, value, sizes)


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
    if key.endswith("num_key_value_heads") and sizes.is_narrow:
        return sizes.key_heads
    is_window = "window" in key and sizes.divisor > 1
    if (
        key in FIXED
        and not is_window
        and (sizes.is_narrow or key.startswith(always) or "experts" in key)
    ):
        return int(FIXED[key])
    if "vocab" in key:
        return VOCABULARY
    if LAYERS.fullmatch(key):
        return sizes.layers
    if not sizes.is_narrow:
        return NO_LIMIT
    if HEADS.fullmatch(key):
        return sizes.heads
    if WIDE.fullmatch(key):
        return 2 * sizes.width
    return sizes.width if WIDTHS.fullmatch(key) else NO_LIMIT


def _small_list(key: str, value: list[Any], sizes: Sizes, specials: Iterator[int]) -> Any:
    if key.endswith(("layer_types", "_block_type")):
        # Layers of two kinds if there are two.
        kinds = [value[0], next((kind for kind in value if kind != value[0]), value[-1])]
        return [kinds[i % 2] for i in range(sizes.layers)]
    if key == "attention_types":
        return [[value[0][0], sizes.layers // len(value[0][0])]]
    if not all(isinstance(x, int) and not isinstance(x, bool) for x in value):
        return _nested(key, value, sizes)
    if LAYER_INDICES.fullmatch(key):
        return [max(min(x, sizes.layers - 1), -sizes.layers) for x in value]
    if key.endswith("out_indices"):
        # As many as before, if there are as many layers; layer 0 of a backbone is its stem.
        first, count = int(key == "out_indices"), min(len(value), sizes.layers)
        return list(range(first, first + count))
    if key in DEPTHS:
        return [1] * len(value)
    if key == "image_size":
        return [min(x, IMAGE) for x in value]
    if SPECIAL.fullmatch(key):
        return [x if x < FIRST_SPECIAL else next(specials) for x in value]
    if sizes.is_narrow and MANY_WIDTHS.fullmatch(key):
        return [min(x, sizes.width) for x in value]
    if sizes.is_narrow and key == "sr_ratios":  # a kernel of 8 x 8 over all channels
        return [min(x, 2) for x in value]
    is_heads = sizes.is_narrow and HEADS.fullmatch(key)
    if is_heads:
        return [min(x, sizes.heads) for x in value]
    return _nested(key, value, sizes) if sizes.divisor > 1 else value


def _nested(key: str, value: list[Any], sizes: Sizes) -> list[Any]:
    """Lists of lists of widths and of other things."""
    if sizes.divisor == 1:
        return value
    return [
        _nested(key, list(x), sizes)
        if isinstance(x, list | tuple)
        else _number(key, x, sizes)
        if isinstance(x, int) and not isinstance(x, bool)
        else x
        for x in value
    ]
