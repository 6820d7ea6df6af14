"""``nn.MultiheadAttention`` with its projections as layers of their own.

torch computes the four projections inside one function, never calling a module, so that nothing
can observe or quantize them. Here each is an ``nn.Linear`` that is called.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.opened import Opened, Stored, Views, linear, open_as

_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj")


class OpenAttention(Opened):
    """An ``nn.MultiheadAttention`` through four linear layers.

    They are ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``; the first three are views of the
    original's memory where that has them in one parameter.
    """

    num_heads: int
    batch_first: bool
    dropout: float
    add_zero_attn: bool
    bias_k: Tensor | None
    bias_v: Tensor | None
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

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
        q, k, v = self._project(query, key, value, is_batched)
        q, k, v = (self._heads(x) for x in (q, *self._with_extra_keys(k, v)))
        # By hand and not by scaled_dot_product_attention, which gives no attention weights.
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # [N, H, T, S]
        for given in self._masks(attn_mask, key_padding_mask, is_batched):
            # What is appended is attended to by all.
            mask = F.pad(given, (0, scores.shape[-1] - given.shape[-1]))
            scores = scores + (mask if mask.is_floating_point() else _additive(mask, scores))
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        mixed = (weights @ v).transpose(1, 2).flatten(2)  # [N, T, E]
        output = self.out_proj(mixed)
        output = output if self.batch_first or not is_batched else output.transpose(0, 1)
        weights = weights.mean(dim=1) if average_attn_weights else weights
        if not is_batched:
            output, weights = output.squeeze(0), weights.squeeze(0)
        return output, weights if need_weights else None

    @property
    def q_proj_weight(self) -> Tensor:
        """Weight of ``q_proj``, also where torch's own has all three in one parameter."""
        return self.q_proj.weight

    @property
    def k_proj_weight(self) -> Tensor:
        """Weight of ``k_proj``."""
        return self.k_proj.weight

    @property
    def v_proj_weight(self) -> Tensor:
        """Weight of ``v_proj``."""
        return self.v_proj.weight

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

    def _with_extra_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends what no token is: a learned key and value, and one of zeros."""
        rows = (len(k), 1, -1)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(rows)], dim=1)
            v = torch.cat([v, self.bias_v.expand(rows)], dim=1)
        return (F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))) if self.add_zero_attn else (k, v)

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


def _additive(mask: Tensor, scores: Tensor) -> Tensor:
    """Minus infinity where a boolean mask is set."""
    # In the scores' dtype: a float32 mask would lift half-precision scores to float32.
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))


def open_attention(module: nn.MultiheadAttention, views: Views) -> None:
    """Makes an ``nn.MultiheadAttention`` an ``OpenAttention``, in place.

    Not one whose parameters are computed from others.
    """
    stored = _where_stored(module)
    own = {name: p for name in stored if (p := module._parameters.get(name)) is not None}
    if len(own) < len(stored):
        return
    parts: dict[str, nn.Parameter] = {}
    for name, at in stored.items():
        # Chunks are views: memory is not taken twice.
        shape = (module.embed_dim, *own[name].shape[1:])
        is_whole = len(at.parts) == 1
        found = (own[name],) if is_whole else views.of(own[name], len(at.parts), shape)
        parts.update(zip(at.parts, found, strict=True))
    layers = {
        name: linear(parts[f"{name}.weight"], parts.get(f"{name}.bias")) for name in _PROJECTIONS
    }
    open_as(module, OpenAttention, layers, stored)
    # nn.TransformerEncoderLayer asks for it; so answered, it takes no fused shortcut.
    module._qkv_same_embed_dim = False


def _where_stored(module: nn.MultiheadAttention) -> dict[str, Stored]:
    """Names of torch's to the projections' parameters."""
    weights = tuple(f"{name}.weight" for name in _PROJECTIONS)
    if module._qkv_same_embed_dim:
        stored = {"in_proj_weight": Stored(weights, (3 * module.embed_dim, module.embed_dim))}
    else:
        widths = (module.embed_dim, module.kdim, module.vdim)
        named = zip(_PROJECTIONS, widths, strict=True)
        stored = {
            f"{name}_weight": Stored((f"{name}.weight",), (module.embed_dim, width))
            for name, width in named
        }
    if module.in_proj_bias is not None:
        biases = tuple(f"{name}.bias" for name in _PROJECTIONS)
        stored["in_proj_bias"] = Stored(biases, (3 * module.embed_dim,))
    return stored
