"""AutoScheme of the package ``auto-round``: formats of layers by the rise of the loss.

The choice alone is clocked, without rounding afterwards. Its defaults save memory: blocks are
dropped after use and read again from the folder.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clock import Asked, cost
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn


def main() -> None:
    """Chooses, and prints what it took as the last line."""
    asked = Asked(Path(sys.argv[1]))
    # Before the import, which reads it: scores are kept there, and another run would find them.
    os.environ["AR_AUTO_SCHEME_CACHE"] = str(asked.folder / "scores")
    model = asked.network()
    tokenizer = numbers_as_words(model.config.vocab_size)
    examples = written(asked.tokens, asked.folder / "examples.json")
    chosen: dict[str, Mapping[str, Any]] = {}

    import auto_round

    def choose() -> None:
        chosen.update(schemes(auto_round, model, tokenizer, examples, asked))

    told = cost(choose)
    bits = Counter(str(scheme["bits"]) for scheme in chosen.values())
    print(json.dumps({**told, "layers": len(chosen), "chosen": dict(bits)}))


def schemes(
    auto_round: Any, model: nn.Module, tokenizer: Any, examples: Path, asked: Asked
) -> Mapping[str, Mapping[str, Any]]:
    """Layer to its format, by AutoScheme."""
    options = asked.options
    formats = [
        auto_round.QuantizationScheme(
            bits=bits, group_size=options["group_size"], sym=True, data_type="int"
        )
        for bits in options["bits"]
    ]
    choice = auto_round.AutoScheme(
        avg_bits=options["avg_bits"],
        options=formats,
        nsamples=asked.tokens.shape[0],
        seqlen=asked.tokens.shape[1],
        batch_size=options["batch"],
        **options["memory"],
    )
    rounder = auto_round.AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=choice,
        dataset=str(examples),
        nsamples=asked.tokens.shape[0],
        seqlen=asked.tokens.shape[1],
        batch_size=options["batch"],
        quant_lm_head=True,
        device_map="cpu",
        enable_torch_compile=False,
        amp=False,
    )
    rounder.post_init()
    found: Mapping[str, Mapping[str, Any]] = rounder.layer_config
    return found


def numbers_as_words(vocabulary: int) -> Any:
    """A tokenizer of texts like ``17 4 31999``: the package takes texts alone."""
    import transformers

    words = Tokenizer(WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    words.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")


def written(tokens: Tensor, file: Path) -> Path:
    """The file with a text for every sequence."""
    file.write_text(json.dumps([" ".join(map(str, row)) for row in tokens.tolist()]), "utf-8")
    return file


if __name__ == "__main__":
    main()
