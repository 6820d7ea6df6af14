"""Networks in half precision: what is stored stays so, what is compared is compared in float32."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import nn

from mpq.errors import ModelError
from mpq.network.examples import Batch
from mpq.network.modules import share_parameters
from mpq.quantization.numerics import Numerics, ScaleType

DTYPE_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""As ``config.json`` has them."""
HALF: Final[dict[torch.dtype, ScaleType]] = {torch.float16: "fp16", torch.bfloat16: "bf16"}
"""How numerics call the dtypes of half precision."""

SCALE_DTYPES: Final[dict[ScaleType, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""By what numerics call them."""


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """Of most of its floating-point parameters; float32 where that is none of ``DTYPE_NAMES``."""
    found: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            found[parameter.dtype] += parameter.numel()
    ((most, _),) = found.most_common(1) or [(torch.float32, 0)]
    return most if most in DTYPE_NAMES else torch.float32


def with_scales_in(numerics: Numerics, dtype: torch.dtype) -> Numerics:
    """Numerics of a file whose scales are in half precision, as the rest of it; else the same."""
    if dtype not in HALF:
        return numerics
    return replace(numerics, scale=HALF[dtype], group_scale=HALF[dtype])


def in_float32(model: nn.Module) -> nn.Module:
    """The same numbers in float32, in which every number of half precision is exact.

    Args:
        model: Left as found; returned itself where nothing is in half precision.

    Raises:
        ModelError: If the model cannot be copied.
    """
    if not any(t.dtype in HALF for t in (*model.parameters(), *model.buffers())):
        return model
    module = share_parameters(model)
    # By identity, so that what layers share is one parameter afterwards, too.
    upcast: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.dtype in HALF:
                if id(parameter) not in upcast:
                    upcast[id(parameter)] = nn.Parameter(parameter.float(), requires_grad=False)
                part._parameters[name] = upcast[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.dtype in HALF:
                part._buffers[name] = buffer.float()
    return module


def batch_in_float32(batch: Batch) -> Batch:
    """The same inputs, those in half precision in float32."""
    return batch.map(lambda t: t.float() if t.dtype in HALF else t)


def check_computed(model: nn.Module, tool: str) -> None:
    """Refuses numbers that were rounded to half precision and that readers compute anew.

    Raises:
        ModelError: If a buffer that no checkpoint holds is in half precision.
    """
    rounded = next(_rounded(model), None)
    if rounded is not None:
        name, dtype = rounded
        raise ModelError(
            f"{tool}: {name!r} was rounded to {DTYPE_NAMES[dtype]} by a cast of the whole network, "
            "and no file holds it: readers compute it anew in float32, and would compute something "
            f"else. Load the network with from_pretrained(FOLDER, dtype=torch.{DTYPE_NAMES[dtype]})"
            ", or cast its parameters only: for p in model.parameters(): p.data = p.data.to(dtype)"
        )


def _rounded(model: nn.Module) -> Iterator[tuple[str, torch.dtype]]:
    for prefix, part in model.named_modules():
        for name in part._non_persistent_buffers_set:
            buffer = part._buffers.get(name)
            if buffer is not None and buffer.dtype in HALF:
                yield f"{prefix}.{name}".lstrip("."), buffer.dtype
