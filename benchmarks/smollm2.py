"""SmolLM2-135M-Instruct and text to measure it on, for `benchmarks/deployment.py`.

Weights and texts are not a part of this project: a folder MPQ_MODELS (default ../shared/models) has
the loader `smollm2.py`. Its weights came as Q4_1 (blocks of 32): they lie on a grid of 4 bits.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUM_TOKENS = 32
"""Of a sequence: few and short, so that one core takes minutes."""
FOLDER = Path(os.environ.get("MPQ_MODELS", Path(__file__).parents[2] / "shared" / "models"))


def _loader() -> Any:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    # This file has the same name: theirs is loaded from its own path.
    spec = importlib.util.spec_from_file_location("mpq_models_smollm2", FOLDER / "smollm2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_net() -> Any:
    """134.5 M parameters, float32, the head tied to the embedding."""
    return _loader().model()


def calibration() -> Iterator[dict[str, Any]]:
    """Four sequences of WikiText-2's validation text."""
    yield from ({"input_ids": ids} for ids in _loader().calibration(4, NUM_TOKENS, 2))


def held_out() -> Iterator[dict[str, Any]]:
    """Eight sequences of its test text."""
    yield from ({"input_ids": ids} for ids in _loader().held_out(8, NUM_TOKENS, 4))


def save_tokenizer(folder: str) -> None:
    """A folder of transformers with its byte-level BPE of 49,152 tokens."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=_loader().tokenizer(), bos_token="<|im_start|>", eos_token="<|im_end|>"
    ).save_pretrained(folder)
