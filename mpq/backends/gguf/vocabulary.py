"""A tokenizer's folder of Hugging Face as llama.cpp's keys and values."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from mpq.errors import ModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""llama.cpp's kinds of tokens."""
_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Final = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
"""llama.cpp's name of a rule by which text is cut before tokens are merged."""
SAMPLES: Final = (
    "Hello world",
    " Once upon a time, there's a  double space.\n\nAnd 1234567 numbers",
    "naïve café, 東京 🙂",
    "def f(x):\n\treturn x ** 2  # don't",
)
"""Texts that llama.cpp must cut into the tokens that the original tokenizer cuts them into."""
_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")


@final
@dataclass(frozen=True)
class Vocabulary:
    """Tokens and rules, as llama.cpp keeps them.

    Args:
        values: Under ``tokenizer.ggml.``: texts, token ids, truth values.
        tokens: As many as the network has embeddings.
        types: The kind of each.
        scores: Of each; empty where merges are listed.
        merges: Pairs, with a blank between; empty where scores decide.
        chat_template: Empty if there is none.
        samples: Token ids of ``SAMPLES``, by the original tokenizer.
    """

    values: Mapping[str, str | int | bool]
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    chat_template: str
    samples: list[list[int]]


def vocabulary_of(folder: str, config: Mapping[str, Any]) -> Vocabulary:
    """Reads the tokenizer of a folder.

    Args:
        folder: With ``tokenizer.json`` or what transformers makes one of.
        config: The network's.

    Raises:
        ModelError: If there is none, or it is of a kind that llama.cpp does not share.
    """
    if not folder or not any((Path(folder) / name).is_file() for name in _FILES):
        raise ModelError(
            "gguf: a file of llama.cpp holds the tokenizer, and "
            + (f"{folder} has none" if folder else "the network was not loaded from a folder")
            + ": name a folder with a tokenizer.json, --to gguf:tokenizer=FOLDER"
        )
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"gguf: the tokenizer in {folder} is none of the tokenizers package")
    stated = json.loads(backend.to_str())
    tokens, types = _tokens(stated, config["vocab_size"])
    is_sentencepiece = bool(stated["model"].get("byte_fallback"))
    values, scores, merges = (_sentencepiece if is_sentencepiece else _byte_level)(stated, tokens)
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in SAMPLES]
    return Vocabulary(
        {**values, **_special(tokenizer, config)},
        tokens,
        types,
        scores,
        merges,
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else "",
        encoded,
    )


def _tokens(stated: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and kinds, filled up to the number of embeddings."""
    model = stated["model"]
    if model["type"] != "BPE":
        raise ModelError(f"gguf: no converter for a tokenizer of the kind {model['type']}; BPE")
    by_id = {number: text for text, number in model["vocab"].items()}
    kinds: dict[int, int] = {}
    for added in stated["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    if max(by_id) >= size:
        raise ModelError(
            f"gguf: the tokenizer has tokens up to {max(by_id)}, the network {size} embeddings"
        )
    if model.get("byte_fallback"):
        kinds = {model["vocab"].get(f"<0x{i:02X}>", -1): _BYTE for i in range(256)} | kinds
    if model.get("unk_token") in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = _UNKNOWN
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    absent = {number: _UNUSED for number in range(size) if number not in by_id}
    return tokens, [{**kinds, **absent}.get(number, _NORMAL) for number in range(size)]


def _pairs(stated: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = (x.split(" ", 1) if isinstance(x, str) else x for x in stated["model"]["merges"])
    return [(left, right) for left, right in pairs]


def _sentencepiece(
    stated: Mapping[str, Any], tokens: list[str]
) -> tuple[dict[str, str | int | bool], list[float], list[str]]:
    """Pieces with scores: llama.cpp merges what has the highest one first."""
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(_pairs(stated)):
        rank.setdefault(left + right, i)
    scores = [-float(rank.get(token, 0)) for token in tokens]
    return {"model": "llama", "pre": "default", "add_space_prefix": _prefixes(stated)}, scores, []


def _prefixes(stated: Mapping[str, Any]) -> bool:
    """Whether a text gets a blank in front."""
    normalizer, cut = stated.get("normalizer") or {}, stated.get("pre_tokenizer") or {}
    parts = [normalizer, *normalizer.get("normalizers", [])]
    is_prepended = any(part.get("type") == "Prepend" for part in parts)
    return is_prepended or cut.get("prepend_scheme") in ("first", "always")


def _byte_level(
    stated: Mapping[str, Any], _: list[str]
) -> tuple[dict[str, str | int | bool], list[float], list[str]]:
    """Bytes as letters, merged by rank."""
    merges = [f"{left} {right}" for left, right in _pairs(stated)]
    return {"model": "gpt2", "pre": _rule(stated.get("pre_tokenizer") or {})}, [], merges


def _rule(cut: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a text is cut before bytes are merged.

    Raises:
        ModelError: If it is not known to have that rule.
    """
    parts = cut.get("pretokenizers", [cut])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and parts[0]["pattern"].get("Regex") in _SPLITS:
        return _SPLITS[parts[0]["pattern"]["Regex"]]
    raise ModelError(
        "gguf: no converter for how this tokenizer cuts text, "
        f"{json.dumps(cut)[:200]}; there are those of GPT-2, SmolLM, Llama 3 and Qwen 2"
    )


def _special(tokenizer: Any, config: Mapping[str, Any]) -> dict[str, str | int | bool]:
    """Which tokens begin and end texts."""
    found: dict[str, str | int | bool] = {}
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in keys.items():
        number = getattr(tokenizer, f"{ours}_token_id")
        if number is None:
            stated = config.get(f"{ours}_token_id")
            number = stated[0] if isinstance(stated, list) and stated else stated
        if number is not None and 0 <= number < config["vocab_size"]:
            found[f"{theirs}_token_id"] = number
    sample = tokenizer("a")["input_ids"]
    found["add_bos_token"] = bool(sample) and sample[0] == found.get("bos_token_id")
    found["add_eos_token"] = bool(sample) and sample[-1] == found.get("eos_token_id")
    return found
