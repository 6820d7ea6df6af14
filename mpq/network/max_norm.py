"""Tables whose rows torch scales down where they are read, written into memory of their own."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import nn


def scaled_tables(model: nn.Module) -> Iterator[nn.Parameter]:
    """Weights of embeddings with ``max_norm``, which every forward pass changes in place."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        if _scales(module) and weight is not None:
            yield weight


def scale_once(copied: nn.Module) -> None:
    """Scales all rows now, so that no forward pass has to: what is rounded is what is read.

    Torch does the same to the rows that it meets. A table that another module reads as well stays
    as it is: that one reads the rows which were not met as they were.

    Args:
        copied: Its tables have memory of their own.
    """
    users = Counter(id(p) for module in copied.modules() for p in module._parameters.values())
    for module in copied.modules():
        if not _scales(module) or users[id(module.weight)] > 1:
            continue
        assert isinstance(module, nn.Embedding | nn.EmbeddingBag)
        assert module.max_norm is not None
        rows = torch.arange(len(module.weight), device=module.weight.device)
        with torch.no_grad():
            torch.embedding_renorm_(module.weight, rows, module.max_norm, module.norm_type)
        module.max_norm = None


def _scales(module: nn.Module) -> bool:
    is_table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return is_table and module.max_norm is not None
