"""The same types for ``llama-quantize``, for those who want its rounding and not ours."""

import re
from collections.abc import Mapping
from typing import Final

RECIPE: Final = "llama-quantize.txt"


def recipe(types: Mapping[str, str]) -> str:
    """A command of llama.cpp.

    Args:
        types: Name of a tensor to its type.
    """
    matrices = {k: v for k, v in types.items() if not re.search(r"norm|rope_freqs|\.bias$", k)}
    options = [
        f'  --tensor-type "^{re.escape(name)}$={kind.lower()}" \\'
        for name, kind in matrices.items()
    ]
    lines = [
        "# NOT mpq's codes, and not run here: llama-quantize rounds by itself, with scales of its",
        "# own: its file loses something else than what mpq measured. The file model.gguf beside",
        "# this is what was searched, and what was run. Some releases pass over an override that",
        "# is equal to the last word (llama.cpp#22544): look at the types that it prints.",
        "llama-quantize \\",
        *options,
        "  float.gguf other.gguf q8_0",
    ]
    return "\n".join(lines) + "\n"
