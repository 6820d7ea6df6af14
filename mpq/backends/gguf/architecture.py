"""Networks of transformers as architectures of llama.cpp: metadata, names, order of rows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError

_BLOCK: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA2_BLOCK: Final = {
    **_BLOCK,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_WHOLE: Final = {EMBEDDING: "token_embd", "model.norm": "output_norm", HEAD: "output"}


GELU: Final = "gelu_pytorch_tanh"


@final
@dataclass(frozen=True)
class Architecture:
    """What llama.cpp makes of one class of transformers.

    Args:
        name: llama.cpp's.
        model_class: transformers'.
        activation: The value of ``hidden_act`` that it computes.
        is_interleaved: Whether rotary embeddings turn neighbours there, where transformers turns
            the halves of a head: rows of queries and keys change places.
        scales_embedding: Whether transformers' embedding multiplies what it gives, which llama.cpp
            does behind it.
        norm_offset: What transformers adds to the weights of norms while running, and llama.cpp
            does not.
        block: Names within a block, there by those here.
    """

    name: str
    model_class: str
    activation: str = "silu"
    is_interleaved: bool = False
    scales_embedding: bool = False
    norm_offset: float = 0.0
    block: Mapping[str, str] = field(default_factory=lambda: _BLOCK)

    def tensor_name(self, name: str) -> str:
        """llama.cpp's name of a parameter.

        Raises:
            ModelError: If the architecture has none of the name.
        """
        module, _, kind = name.rpartition(".")
        in_block = re.fullmatch(r"model\.layers\.([0-9]+)\.(.+)", module)
        found = _WHOLE.get(module)
        if in_block and in_block[2] in self.block:
            found = f"blk.{in_block[1]}.{self.block[in_block[2]]}"
        if found is None or kind not in ("weight", "bias"):
            raise ModelError(f"llama.cpp's architecture {self.name} has no tensor for {name!r}")
        return f"{found}.{kind}"

    def layer_name(self, tensor: str) -> str:
        """The module that a tensor belongs to; empty where none does."""
        stem = tensor.removesuffix(".weight").removesuffix(".bias")
        whole = {there: here for here, there in _WHOLE.items()}
        in_block = re.fullmatch(r"blk\.([0-9]+)\.(.+)", stem)
        if in_block is None:
            return whole.get(stem, "")
        here = {there: here for here, there in self.block.items()}.get(in_block[2])
        return f"model.layers.{in_block[1]}.{here}" if here else ""

    def row_order(self, tensor: str, num_rows: int, heads: int, kv_heads: int) -> Tensor | None:
        """Which of our rows stands at each place of a tensor; ``None``: the same.

        Args:
            tensor: llama.cpp's name.
            num_rows: ``O``.
            heads: Of queries.
            kv_heads: Of keys.
        """
        found = re.fullmatch(r"blk\.[0-9]+\.attn_([qk])\.(weight|bias)", tensor)
        if found is None or not self.is_interleaved:
            return None
        count = heads if found[1] == "q" else kv_heads
        return torch.arange(num_rows).reshape(count, 2, -1).transpose(1, 2).flatten()


_GEMMA: Final = Architecture(
    "gemma", "GemmaForCausalLM", GELU, scales_embedding=True, norm_offset=1.0
)
ARCHITECTURES: Final = {
    "llama": Architecture("llama", "LlamaForCausalLM", is_interleaved=True),
    "mistral": Architecture("llama", "MistralForCausalLM", is_interleaved=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM"),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, name="gemma2", model_class="Gemma2ForCausalLM", block=_GEMMA2_BLOCK),
}
"""By ``model_type`` of transformers."""
_OURS: Final = "mpq.model_type"
"""Key under which the file says which of ``ARCHITECTURES`` it is; other readers pass over it."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """What llama.cpp makes of a network.

    Args:
        config: As ``mpq.backends.hugging_face.config_of`` gives it, defaults included.

    Raises:
        ModelError: If it has no such architecture, or computes something else in it.
    """
    kind, (model_class, *_) = config["model_type"], config["architectures"]
    found = ARCHITECTURES.get(kind)
    if found is None or found.model_class != model_class:
        known = ", ".join(each.model_class for each in ARCHITECTURES.values())
        raise ModelError(f"gguf: no converter for a {model_class}; there are those for {known}")
    act = config.get("hidden_act") or config.get("hidden_activation")
    if act != found.activation:
        raise ModelError(
            f"gguf: llama.cpp computes {found.activation} in {kind}, and this is {act}"
        )
    if config.get("use_sliding_window"):
        raise ModelError(f"gguf: llama.cpp has no sliding window in {kind}")
    if config.get("use_bidirectional_attention"):
        raise ModelError("gguf: llama.cpp has causal attention only")
    width = config.get("query_pre_attn_scalar", config["head_dim"])
    if width != config["head_dim"]:
        raise ModelError(
            f"gguf: llama.cpp divides by the root of head_dim, {config['head_dim']}, and not of "
            f"query_pre_attn_scalar, {width}"
        )
    return found


def full_config(config: Mapping[str, Any], model_config: Any) -> dict[str, Any]:
    """A configuration with its defaults, and what goes without saying in it."""
    found = {**model_config.to_dict(), **config}
    heads, width = found.get("num_attention_heads"), found.get("hidden_size")
    if heads and width and not found.get("head_dim"):
        found["head_dim"] = width // heads
    if not found.get("rope_parameters"):
        # Before transformers 5 these were two entries.
        found["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": found.get("rope_theta", 10000.0),
            **(found.get("rope_scaling") or {}),
        }
    return found


def metadata(config: Mapping[str, Any], found: Architecture) -> dict[str, int | float | str]:
    """Keys and values of llama.cpp about the network itself.

    Raises:
        ModelError: If positions are encoded in a way that it is not known to share.
    """
    length = config["max_position_embeddings"]
    if found.name == "llama" and config.get("sliding_window"):
        # It has no window there: further than that it would see what the network does not.
        length = min(length, config["sliding_window"])
    stated: dict[str, int | float | str] = {
        "context_length": length,
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": config["head_dim"],
        "vocab_size": config["vocab_size"],
        **_rope(config),
    }
    if found.name == "gemma2":
        stated["attention.sliding_window"] = config["sliding_window"]
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if not config[key]:
                raise ModelError(f"gguf: llama.cpp always caps logits in gemma2; {key} is missing")
            stated[key] = float(config[key])
    return {_OURS: config["model_type"]} | {f"{found.name}.{k}": v for k, v in stated.items()}


def _rope(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    rope = config["rope_parameters"]
    stated: dict[str, int | float | str] = {"rope.freq_base": float(rope["rope_theta"])}
    kind = rope["rope_type"]
    if kind == "linear":
        stated |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind not in ("default", "llama3"):
        raise ModelError(f"gguf: no converter for rotary embeddings of the type {kind!r}")
    return stated


def rope_factors(config: Mapping[str, Any]) -> Tensor | None:
    """``[head_dim / 2]``: what frequencies are divided by, as Llama 3.1 stretches them."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return None
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    width = config["head_dim"]
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2).double() / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    found: Tensor = (1 / ((1 - share) / factor + share)).float()
    return found


def gelu_by_table(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> Tensor:
    """Forward hook: GELU as llama.cpp reads it between -10 and 10, with fp16 on both sides."""
    (x,) = args
    near = nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
    return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, near))
