"""``nn.EmbeddingBag`` as an embedding whose rows are put together afterwards."""

import torch
from torch import Tensor, nn

from mpq.network.opened import Opened, Stored, Views, open_as


class OpenBag(Opened):
    """An ``nn.EmbeddingBag`` through an embedding, ``<name>.rows``.

    The embedding reads ``[N, T]`` ids: bags of unlike lengths are filled up with ids that do not
    count, so that each bag is an example of its own. It writes every row, where torch's own kernel
    writes their sum alone.
    """

    rows: nn.Embedding
    mode: str
    padding_idx: int | None
    include_last_offset: bool

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """As ``nn.EmbeddingBag.forward``.

        Raises:
            ValueError: If ids in one row have no offsets, or ids in two have them.
        """
        if (input.ndim == 1) != (offsets is not None):
            raise ValueError(
                f"an EmbeddingBag takes ids [N, T], or ids [M] with offsets; got {input.ndim} axes "
                f"and {'no ' if offsets is None else ''}offsets"
            )
        if per_sample_weights is not None and self.mode != "sum":
            raise NotImplementedError(f"per_sample_weights need the mode sum; got {self.mode!r}")
        is_inside = torch.ones_like(input, dtype=torch.bool)
        if offsets is not None:
            places, is_inside = self._places(input, offsets)
            input = _at(input, places)  # noqa: A001
            if per_sample_weights is not None:
                per_sample_weights = _at(per_sample_weights, places)
        if self.padding_idx is not None:
            is_inside = is_inside & (input != self.padding_idx)
        rows = self.rows(input)  # [N, T, E]
        if per_sample_weights is not None:
            rows = rows * per_sample_weights.unsqueeze(-1)
        return self._reduced(rows, is_inside.unsqueeze(-1))

    def _places(self, ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, T]`` place of each bag's ids, and whether it is one; others are ``len(ids)``."""
        end = offsets.new_tensor([len(ids)])
        starts = offsets[:-1] if self.include_last_offset else offsets
        ends = offsets[1:] if self.include_last_offset else torch.cat([offsets[1:], end])
        # At least one, as there is no largest of no numbers.
        longest = max([1, *(ends - starts).tolist()])
        places = starts[:, None] + torch.arange(longest, device=ids.device)
        is_inside = places < ends[:, None]
        return torch.where(is_inside, places, end), is_inside

    def _reduced(self, rows: Tensor, is_inside: Tensor) -> Tensor:
        """``[N, E]``; an empty bag is 0."""
        if self.mode == "max":
            # Not `amax`, which shares the gradient between equal numbers.
            largest = rows.masked_fill(~is_inside, float("-inf")).max(dim=1).values
            return largest.masked_fill(~is_inside.any(dim=1), 0.0)
        total = rows.masked_fill(~is_inside, 0.0).sum(dim=1)
        return total / is_inside.sum(dim=1).clamp_min(1) if self.mode == "mean" else total


def _at(values: Tensor, places: Tensor) -> Tensor:
    """The values at some places, 0 behind the last one."""
    return torch.cat([values, values.new_zeros(1)])[places]


def open_bag(module: nn.EmbeddingBag, _: Views) -> None:
    """Makes an ``nn.EmbeddingBag`` an ``OpenBag``, in place.

    Not one whose weight is computed, nor one that still has ``max_norm`` (``scale_once``), which
    changes its weight in every forward pass.
    """
    weight = module._parameters.get("weight")
    if weight is None or module.max_norm is not None:
        return
    # On meta nothing is initialised, and no random number of the user's is spent.
    rows = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    rows.weight = weight
    stored = {"weight": Stored(("rows.weight",), tuple(weight.shape))}
    open_as(module, OpenBag, {"rows": rows}, stored)
