"""Inputs of a model that nothing is known of but its ``forward`` and its configuration."""

import inspect
import itertools
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

EXAMPLES: Final = 4
TOKENS: Final = 8
IMAGE: Final = 64
"""Pixels on a side."""


def batches_of(model: nn.Module, config: Any) -> tuple[dict[str, Any], ...]:
    """Three batches of the first kind of inputs that the model takes.

    Raises:
        LookupError: If it takes none; or the first error of the model's.
    """
    error: Exception | None = None
    for makers in itertools.islice(_guesses(model, config), 24):
        generator = torch.Generator().manual_seed(0)
        batches = tuple({n: m(generator) for n, m in makers.items()} for _ in range(3))
        try:
            with torch.no_grad():
                output = model(**batches[0])
        # As in ``build``: what a model raises says that it takes other inputs.
        except Exception as why:
            error = error or why  # of the plainest inputs
            continue
        if any(isinstance(x, Tensor) for x in tree_leaves(output)):
            return batches
    raise error or LookupError("its inputs are not known")


def _guesses(model: nn.Module, config: Any) -> Iterator[dict[str, Any]]:
    """Names of inputs to what makes them, the plainest first."""
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
    for names in (*ways, [*ways[-1], *masks], [*plain, *both], [*plain, *decoder, *both]):
        wanted = list(dict.fromkeys(names))
        makers = [_makers(name, config, type(model).__name__) for name in wanted]
        for chosen in itertools.product(*makers):
            yield dict(zip(wanted, chosen, strict=True))


def _makers(name: str, config: Any, model: str) -> list[Any]:
    """Everything that an input of such a name may be."""

    def floats(*shape: int) -> Any:
        return lambda generator: torch.randn(EXAMPLES, *shape, generator=generator)

    size = _found(config, "image_size") or IMAGE
    side = size if isinstance(size, int) else size[0]
    channels, mels = _found(config, "num_channels") or 3, _found(config, "num_mel_bins") or 80
    frames = _found(config, "num_frames") or 4
    width = _found(config, "hidden_size") or 32
    pixels = _found(config, "patch_embed_hidden_size") or 768
    audio = [floats(2000), floats(1, 2000), floats(_found(config, "max_length") or 64, mels)]
    known = {
        "pixel_values": [
            floats(channels, side, side),
            floats(channels, 64, 64),
            floats(frames, channels, side, side),
            floats(channels, 224, 224),
        ],
        "pixel_values_videos": [floats(frames, channels, side, side)],
        "input_values": audio,
        "input_features": [
            floats(mels, 2 * (_found(config, "max_source_positions") or 32)),
            floats(64, mels),
            floats(mels, 64),
            floats(64, _found(config, "feature_projection_input_dim") or 160),
        ],
        "spectrogram": [floats(64, mels)],
        # Row and column before the pixels.
        "flattened_patches": [
            lambda generator: torch.rand(EXAMPLES, TOKENS, 2 + pixels, generator=generator)
        ],
        "hidden_states": [floats(TOKENS, width)],
        "inputs_embeds": [floats(TOKENS, width)],
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
    return [_ids(2, TOKENS)] if model.endswith("MultipleChoice") else [_ids(TOKENS)]


def _patches(config: Any, side: int) -> int:
    patch = _found(config, "patch_size") or 8
    return (side // (patch if isinstance(patch, int) else patch[0])) ** 2


def _ids(*shape: int) -> Any:
    return lambda generator: torch.randint(10, 90, (EXAMPLES, *shape), generator=generator)


def _found(config: Any, name: str) -> Any:
    """A field of a configuration, or of the first sub-configuration that has it."""
    own = vars(config).get(name)
    subs = (v for v in vars(config).values() if hasattr(v, "to_dict") and hasattr(v, "model_type"))
    return own if own else next((x for sub in subs if (x := _found(sub, name))), None)
