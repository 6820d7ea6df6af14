"""Inputs of a model that nothing is known of but its ``forward`` and its configuration."""

import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

EXAMPLES: Final = 4
TOKENS: Final = 8
IMAGE: Final = 64
"""Pixels on a side."""
SIDE: Final = 4
"""Patches on a side, where a model takes patches and not images."""
MOST_NAMES: Final = 10
"""Sets of names of inputs that are tried."""
MOST_SHAPES: Final = 12
"""Of each set: ways to make its inputs that are tried."""
LEFT_OUT: Final = (
    "encoder_hidden_states",
    "inputs_embeds",
    "decoder_inputs_embeds",
    "hidden_states",
    "position_ids",
)
"""Given in place of others, never beside them."""


def batches_of(model: nn.Module, config: Any) -> tuple[dict[str, Any], ...]:
    """Three batches of the first kind of inputs that the model takes.

    What an error of the model's names, such as "You have to specify bbox", is given as well.

    Raises:
        LookupError: If it takes none; or the first error of the model's.
    """
    parameters = inspect.signature(model.forward).parameters
    error: Exception | None = None
    waiting, tried = list(_names(model, config)), list[set[str]]()
    while waiting and len(tried) < MOST_NAMES:
        names = waiting.pop(0)
        if set(names) in tried:
            continue
        tried.append(set(names))
        asked = set[str]()
        for batches in itertools.islice(_guesses(model, config, names), MOST_SHAPES):
            try:
                with torch.no_grad():
                    output = model(**batches[0])
            # As in ``build``: what a model raises says that it takes other inputs.
            except Exception as why:
                error = error or why  # of the plainest inputs
                asked |= set(re.findall(r"\w+", str(why).lower())) & set(parameters)
                continue
            if any(isinstance(x, Tensor) for x in tree_leaves(output)):
                return batches
        if asked - set(names):
            waiting.insert(0, [*names, *sorted(asked - set(names))])
    raise error or LookupError(f"its inputs are not known: {', '.join(tried[0])}")


def _names(model: nn.Module, config: Any) -> Iterator[list[str]]:
    """Names of inputs, the fewest first."""
    parameters = inspect.signature(model.forward).parameters
    main = str(getattr(model, "main_input_name", "input_ids"))
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    plain = [*needed, *([main] if main in parameters else [])]
    decoder = [n for n in ("decoder_input_ids",) if n in parameters]
    both = [n for n in ("input_ids", "pixel_values", "input_features") if n in parameters]
    is_both = getattr(config, "is_encoder_decoder", False)
    ways = [[*plain, *decoder]] if is_both else [plain, [*plain, *decoder]]
    masks = [n for n in ("attention_mask",) if n in parameters]
    known = [n for n in parameters if n not in LEFT_OUT and _makers(n, config, "")]
    yield from ways
    yield from ([*ways[-1], *masks], [*plain, *both], [*plain, *decoder, *both])
    yield [n for n in known if n != "labels"]


def _guesses(model: nn.Module, config: Any, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """Three batches of each shape that inputs of such names may have, the plainest first."""
    wanted = list(dict.fromkeys(names))
    is_packed = any(name.endswith("grid_thw") for name in wanted)
    makers = [_makers(n, config, type(model).__name__, is_packed) for n in wanted]
    for chosen in itertools.product(*makers):
        generator = torch.Generator().manual_seed(0)
        makes = dict(zip(wanted, chosen, strict=True))
        yield tuple({n: m(generator) for n, m in makes.items()} for _ in range(3))


def _makers(name: str, config: Any, model: str, is_packed: bool = False) -> list[Any]:
    """Everything that an input of such a name may be.

    Args:
        name: Of the input.
        config: Of the model.
        model: Name of its class.
        is_packed: Whether the patches of all images come in one row of patches.
    """

    def floats(*shape: int) -> Any:
        return lambda generator: torch.randn(EXAMPLES, *shape, generator=generator)

    size = _found(config, "image_size") or IMAGE
    side = size if isinstance(size, int) else size[0]
    channels, mels = _found(config, "num_channels") or 3, _found(config, "num_mel_bins") or 80
    frames = _found(config, "num_frames") or 4
    width = _found(config, "hidden_size") or 32
    pixels = _found(config, "patch_embed_hidden_size") or 768
    if is_packed and name in ("pixel_values", "hidden_states"):
        return _packed(config, channels)
    series, past = _series(config), _found(config, "context_length") or 32
    audio = [floats(2000), floats(1, 2000), floats(_found(config, "max_length") or 64, mels)]
    audio += [floats(1, 1920), floats(TOKENS, width), floats(8000), floats(1920)]
    known = {
        "pixel_values": [
            floats(channels, side, side),
            floats(channels, 64, 64),
            floats(frames, channels, side, side),
            floats(channels, 224, 224),
            floats(2, channels, side, side),
            floats(1, channels, side, side),
            floats(SIDE**2, channels * _patch(config) ** 2),
        ],
        "pixel_values_videos": [floats(frames, channels, side, side)],
        "input_values": audio,
        "input_features": [
            floats(mels, 2 * (_found(config, "max_source_positions") or 32)),
            floats(64, mels),
            floats(mels, 64),
            floats(64, _found(config, "feature_projection_input_dim") or 160),
        ],
        "audio_mel": [floats(64, mels), floats(64, 128)],
        "spectrogram": [floats(64, mels)],
        # Row and column before the pixels.
        "flattened_patches": [
            lambda generator: torch.rand(EXAMPLES, TOKENS, 2 + pixels, generator=generator)
        ],
        "hidden_states": [floats(TOKENS, width)],
        "inputs_embeds": [floats(TOKENS, width)],
        "query_embeds": [floats(TOKENS, width)],
        "noise_embeds": [floats(TOKENS, width)],
        "past_values": [floats(past, *series), floats(past + 7, *series), floats(past, 1)],
        "latents": [floats(_found(config, "latent_dim") or width, TOKENS), floats(width, TOKENS)],
        "encoder_hidden_states": [floats(TOKENS, width)],
        "context_hidden_states": [floats(TOKENS, width)],
        "visual_feats": [floats(TOKENS, _found(config, "visual_feat_dim") or width)],
        "visual_pos": [floats(TOKENS, _found(config, "visual_pos_dim") or 4)],
        "state": [floats(_found(config, "max_state_dim") or 32)],
        "states": [floats(TOKENS, _found(config, "state_dim") or 17)],
        "actions": [floats(TOKENS, _found(config, "act_dim") or 4)],
        "rewards": [floats(TOKENS, 1)],
        "returns_to_go": [floats(TOKENS, 1)],
        "bbox": [_boxes, lambda generator: _boxes(generator).float() / 100],
        "grid_thw": [_constant([1, SIDE, SIDE])],
        "image_grid_thw": [_constant([1, SIDE, SIDE])],
        "merge_sizes": [_constant(1), _constant(2)],
        "spatial_shapes": [_constant([SIDE, SIDE])],
        "target_sizes": [_constant([SIDE, SIDE])],
        "pixel_attention_mask": [lambda _: torch.ones(EXAMPLES, SIDE**2, dtype=torch.long)],
        "input_features_mask": [lambda _: torch.ones(EXAMPLES, 64, dtype=torch.long)],
        "audio_mel_mask": [lambda _: torch.ones(EXAMPLES, 64, dtype=torch.bool)],
        "past_observed_mask": [
            lambda _: torch.ones(EXAMPLES, past + 7, *series),
            lambda _: torch.ones(EXAMPLES, past, *(series or (1,))),
        ],
        "past_values_padding": [lambda _: torch.zeros(EXAMPLES, past, dtype=torch.long)],
        "freq": [lambda _: torch.zeros(EXAMPLES, 1, dtype=torch.long)],
        "timesteps": [lambda _: torch.arange(TOKENS).expand(EXAMPLES, -1)],
        "is_longer": [lambda _: torch.zeros(EXAMPLES, 1, dtype=torch.bool)],
        "past_time_features": [floats(past + 7, _found(config, "num_time_features") or 0)],
        "image_embeds_position_mask": [
            lambda _: (torch.arange(TOKENS) < (_found(config, "latent_query_num") or 2)).expand(
                EXAMPLES, -1
            )
        ],
    }
    if name in known:
        return known[name]
    if name.endswith("attention_mask"):
        return [lambda _: torch.ones(EXAMPLES, TOKENS, dtype=torch.long)]
    if name == "bool_masked_pos":
        patches = _patches(config, side) * frames // (_found(config, "tubelet_size") or frames)
        return [lambda _: (torch.arange(patches) % 2 == 0).expand(EXAMPLES, -1)]
    if not name.endswith(("ids", "inputs")):
        return []
    if name == "token_type_ids":
        return [lambda _: torch.zeros(EXAMPLES, TOKENS, dtype=torch.long)]
    high = min(_found(config, "vocab_size") or 90, 90)
    return [_ids(high, 2, TOKENS)] if model.endswith("MultipleChoice") else [_ids(high, TOKENS)]


def _series(config: Any) -> tuple[int, ...]:
    """Of series of several numbers at once, how many."""
    count = _found(config, "num_input_channels") or _found(config, "input_size") or 1
    return (count,) if isinstance(count, int) and count > 1 else ()


def _patch(config: Any) -> int:
    patch = _found(config, "patch_size") or 8
    return int(patch if isinstance(patch, int) else patch[0])


def _packed(config: Any, channels: int) -> list[Any]:
    """Patches of all images, one after another: flat, or as small images."""
    count, side = EXAMPLES * SIDE**2, _patch(config)
    times = _found(config, "temporal_patch_size") or 1
    inner = _found(config, "in_channels") or _found(config, "in_chans") or channels
    shapes = [
        (inner * times * side**2,),
        (inner, side, side),
        (inner * side**2,),
        (inner, times, side, side),
    ]
    return [lambda g, shape=shape: torch.randn(count, *shape, generator=g) for shape in shapes]


def _constant(value: Any) -> Any:
    """The same of each example."""
    return lambda _: torch.tensor([value] * EXAMPLES)


def _boxes(generator: torch.Generator) -> Tensor:
    corners = torch.randint(0, 30, (EXAMPLES, TOKENS, 2), generator=generator)
    return torch.cat([corners, corners + 20], dim=-1)


def _patches(config: Any, side: int) -> int:
    patch = _found(config, "patch_size") or 8
    return (side // (patch if isinstance(patch, int) else patch[0])) ** 2


def _ids(high: int, *shape: int) -> Any:
    low = min(10, high // 2)
    return lambda generator: torch.randint(low, high, (EXAMPLES, *shape), generator=generator)


def _found(config: Any, name: str) -> Any:
    """A field of a configuration, or of the first sub-configuration that has it."""
    own = vars(config).get(name)
    subs = (v for v in vars(config).values() if hasattr(v, "to_dict") and hasattr(v, "model_type"))
    return own if own else next((x for sub in subs if (x := _found(sub, name))), None)
