"""``nn.MultiheadAttention`` with its projections as layers of their own.

torch computes the four projections inside one function, never calling a module, so that nothing
can observe or quantize them. Here each is an ``nn.Linear`` that is called.
"""

import torch
from torch import Tensor, nn

from mpq.errors import ModelError


class OpenAttention(nn.Module):
    """Computes what the given ``nn.MultiheadAttention`` computes, through four linear layers.

    They are ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``; parameters are the original's
    memory.

    Args:
        attention: The module to open; its projections' parameters are used, not copied.

    Raises:
        ModelError: If it uses ``bias_k``/``bias_v`` or ``add_zero_attn``.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        why = why_closed(attention)
        if why:
            raise ModelError(why)
        self.num_heads = attention.num_heads
        self.batch_first = attention.batch_first
        # nn.TransformerEncoderLayer asks for these; so answered, it takes no fused shortcut.
        self.in_proj_bias = None
        self._qkv_same_embed_dim = False
        self.q_proj, self.k_proj, self.v_proj = _projections(attention)
        self.out_proj = attention.out_proj
        # New modules are in training mode, whatever the original's.
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 - a hint only
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``; ``is_causal`` is the hint that it is there."""
        is_batched = query.ndim == 3
        q, k, v = (self._heads(x) for x in self._project(query, key, value, is_batched))
        # By hand and not by scaled_dot_product_attention, which gives no attention weights.
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # [N, H, T, S]
        for mask in self._masks(attn_mask, key_padding_mask, is_batched):
            scores = scores + (mask if mask.is_floating_point() else _additive(mask, scores))
        weights = scores.softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # [N, T, E]
        output = self.out_proj(mixed)
        output = output if self.batch_first or not is_batched else output.transpose(0, 1)
        weights = weights.mean(dim=1) if average_attn_weights else weights
        if not is_batched:
            output, weights = output.squeeze(0), weights.squeeze(0)
        return output, weights if need_weights else None

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor, is_batched: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        def batched(x: Tensor) -> Tensor:
            # The rest of the code is batch first and knows no other case.
            return (x if self.batch_first else x.transpose(0, 1)) if is_batched else x.unsqueeze(0)

        return (
            self.q_proj(batched(query)),
            self.k_proj(batched(key)),
            self.v_proj(batched(value)),
        )

    def _heads(self, x: Tensor) -> Tensor:
        heads = x.reshape(*x.shape[:-1], self.num_heads, -1)
        return heads.transpose(1, 2)  # [N, H, T, E / H]

    def _masks(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, is_batched: bool
    ) -> list[Tensor]:
        masks = []
        if attn_mask is not None:
            # torch takes a mask per example and head as [N * H, T, S], in that order.
            per_head = (-1, self.num_heads, *attn_mask.shape[-2:])
            masks.append(attn_mask.reshape(per_head) if attn_mask.ndim == 3 else attn_mask)
        if key_padding_mask is not None:
            padding = key_padding_mask if is_batched else key_padding_mask.unsqueeze(0)
            # Padding hides keys, whatever the query and the head: hence the two axes of 1.
            masks.append(padding[:, None, None, :])
        return masks


def why_closed(module: nn.Module) -> str | None:
    """Why an ``nn.MultiheadAttention`` cannot be opened, if so; ``None`` for other modules."""
    if type(module) is not nn.MultiheadAttention:  # a subclass may compute something else
        return None
    # Both append keys that no token has; those of bias_k and bias_v belong to no layer.
    if module.bias_k is not None or module.add_zero_attn:
        return (
            "nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be opened into "
            "its projections; write the attention out as linear layers"
        )
    return None


def _projections(attention: nn.MultiheadAttention) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    # Chunks are views: a weight that is changed in the model is changed here, too, and memory is
    # not taken twice.
    if attention._qkv_same_embed_dim:
        weights = attention.in_proj_weight.detach().chunk(3)
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = tuple(attention.get_parameter(name).detach() for name in names)
    bias = attention.in_proj_bias
    biases = (None,) * 3 if bias is None else bias.detach().chunk(3)
    q, k, v = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
    return q, k, v


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    # On meta nothing is initialised: neither time nor random numbers of the user's are spent.
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """Minus infinity where a boolean mask is set."""
    # In the scores' dtype: a float32 mask would lift half-precision scores to float32.
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))


def open_attention(model: nn.Module) -> nn.Module:
    """Replaces every ``nn.MultiheadAttention`` inside a model, in place; returns the model.

    Those for which there is a ``why_closed`` stay as they are.
    """
    # `set_submodule` cannot replace the root.
    if type(model) is nn.MultiheadAttention:
        return OpenAttention(model)
    opened: dict[nn.Module, OpenAttention] = {}
    # All names of a module that has several: the closed one would be called under the others. A
    # list, because the tree changes under the loop.
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # the fused path reads the parameters directly
        if type(module) is nn.MultiheadAttention and why_closed(module) is None:
            if module not in opened:
                opened[module] = OpenAttention(module)
            model.set_submodule(name, opened[module])
    return model
