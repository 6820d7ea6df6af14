"""Every model class of the installed transformers, as small as its configuration lets it be.

Nothing is downloaded: a model is made from its configuration's own defaults with small numbers of
layers, channels, tokens and pixels, and its inputs from what its ``forward`` asks for.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from scripts.zoo_configs import WAYS, Sizes, tiny
from scripts.zoo_inputs import batches_of

IS_MAPPING: Final = re.compile(r"MODEL_\w*MAPPING_NAMES")
MAX_PARAMETERS: Final = 3_500_000


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
    given = config_class().to_dict()
    if sizes.divisor > 1:
        # What is worked out from other fields is worked out anew.
        fields = getattr(config_class, "__dataclass_fields__", given)
        given = {key: value for key, value in given.items() if key in fields}
    config = config_class(**tiny(given, sizes))
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > MAX_PARAMETERS:
        raise NotBuiltError(f"its smallest has {size:,} parameters")
    torch.manual_seed(0)
    model = kind(config).eval().float()
    return Built(model, batches_of(model, config))
