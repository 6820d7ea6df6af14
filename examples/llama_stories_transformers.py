"""The Llama of ``llama_stories.py``, trained, as transformers has it: for deployment.

Tools that people deploy with read networks by transformers' names. Give mpq no ``--weights``; run
this file to make the tokenizer's folder, which ``--to gguf:tokenizer=FOLDER`` takes::

    python examples/llama_stories_transformers.py FOLDER
"""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import tokenizers
import torch
import transformers
from llama_stories import DATA  # type: ignore[import-not-found]
from llama_stories import calibration as plain_calibration
from llama_stories import held_out as plain_held_out
from safetensors.torch import load_file
from tokenizers import normalizers
from torch import Tensor, nn

NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "tok_embeddings": "model.embed_tokens",
}
"""llama2.c's names to those of transformers, within a block."""
SPECIAL = ("<unk>", "<s>", "</s>")


def make_net() -> nn.Module:
    """Return the trained network in eval mode."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    stored = load_file(DATA / "llm" / "stories260K.fp32.safetensors")
    state = {_name(name): _rows(name, tensor) for name, tensor in stored.items()}
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    return model


def calibration() -> Iterator[dict[str, Tensor]]:
    """Yield 64 sequences of training stories: ``input_ids [N, 128]`` int64."""
    return _named(plain_calibration())


def held_out() -> Iterator[dict[str, Tensor]]:
    """Yield the held-out stories, in the form of :func:`calibration`."""
    return _named(plain_held_out())


def _named(batches: Iterator[tuple[Tensor, Tensor]]) -> Iterator[dict[str, Tensor]]:
    return ({"input_ids": ids} for ids, _ in batches)


def _name(name: str) -> str:
    if name == "norm.weight":
        return "model.norm.weight"
    for theirs, ours in NAMES.items():
        name = name.replace(f"{theirs}.weight", f"{ours}.weight")
    return name.replace("layers.", "model.layers.", 1) if name.startswith("layers.") else name


def _rows(name: str, tensor: Tensor) -> Tensor:
    """Rows of queries and keys by halves of a head, where llama2.c has pairs."""
    if ".wq." not in name and ".wk." not in name:
        return tensor
    return tensor.reshape(-1, 4, 2, 64).transpose(1, 2).reshape(tensor.shape)


def save_tokenizer(folder: Path | str) -> None:
    """Write the tokenizer: llama2.c's scores of pieces as merges, from the highest score on."""
    pieces = (DATA / "llm" / "tok512.bin").read_bytes()
    found, place = dict[str, tuple[int, float]](), 4
    while place < len(pieces):
        score, length = struct.unpack("<fi", pieces[place : place + 8])
        text = pieces[place + 8 : place + 8 + length].decode().replace(" ", "▁")
        found[text.strip("\n") or text] = len(found), score
        place += 8 + length
    merges = [
        (text[:cut], text[cut:])
        for text in sorted(found, key=lambda text: -found[text][1])
        for cut in range(1, len(text))
        if found[text][0] >= 259 and text[:cut] in found and text[cut:] in found
    ]
    vocabulary = {text: number for text, (number, _) in found.items()}
    model = tokenizers.models.BPE(vocabulary, merges, unk_token=SPECIAL[0], byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.add_special_tokens(
        [tokenizers.AddedToken(text, special=True, normalized=False) for text in SPECIAL]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    ).save_pretrained(folder)


@torch.no_grad()
def main(folder: str) -> None:
    """Write the tokenizer, and print the network's perplexity on the held-out stories."""
    save_tokenizer(folder)
    model, total, count = make_net(), 0.0, 0
    for ids, targets in plain_held_out():
        logits = model(ids).logits
        total += float(nn.functional.cross_entropy(logits.mT, targets, reduction="sum"))
        count += targets.numel()
    print(f"perplexity {torch.tensor(total / count).exp():.2f} on {count} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
