"""Rotary positions of keys, undone and done again, where transformers has them.

Keys are rotated by their place in the sequence, which mixes pairs of channels: a channel that is
large in every token before it is large in some of them only afterwards (KVQuant, Hooper et al.
2024, arXiv:2401.18079, section 3.2). A cache that holds keys as they were before rotates them
whenever it is read.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn

from mpq.errors import ModelError

_POSITIONS: Final = "_mpq_positions"
"""Attribute of an attention module while it runs: cosines and sines of the tokens it was given."""
_FUNCTION: Final = "apply_rotary_pos_emb"
"""What the files of transformers call the function that rotates queries and keys."""
_INSTEAD: Final = "leave out before_rotation (--kv-before-rotation)"
_TOLERANCE: Final = 1e-3
"""Of keys that are rotated back and forth, beside the largest of them: half precision passes."""


@final
@dataclass(frozen=True, eq=False)
class Rotation:
    """How ``C`` tokens of an attention are rotated.

    Args:
        function: Rotates queries and keys ``[N, H, C, D]``, given cosines and sines.
        cosines: ``[1 or N, C, W]``, of all pairs of channels, or of each channel.
        sines: As cosines.
    """

    function: Callable[..., tuple[Tensor, Tensor]]
    cosines: Tensor
    sines: Tensor

    @classmethod
    def of(cls, attention: nn.Module) -> Self | None:
        """Of the tokens that an attention runs with now; ``None``: it was given no positions."""
        given = vars(attention).get(_POSITIONS)
        return given and cls(_function_of(attention), *given)

    @property
    def num_tokens(self) -> int:
        """``C``."""
        return self.cosines.shape[1]

    def done(self, keys: Tensor) -> Tensor:
        """Keys ``[N, H, C, D]`` as queries meet them."""
        return self.function(keys, keys, self.cosines, self.sines)[1]

    def undone(self, keys: Tensor) -> Tensor:
        """Keys as they were before they were rotated."""
        # Some networks scale both, so that a rotation back has to be by the inverse scale.
        scale = self.cosines.square() + self.sines.square()
        return self.function(keys, keys, self.cosines / scale, -self.sines / scale)[1]

    def tokens(self, some: slice) -> Self:
        """Of some of the tokens."""
        return replace(self, cosines=self.cosines[:, some], sines=self.sines[:, some])

    def followed_by(self, other: Self) -> Self:
        """Of these tokens and those of another one."""
        cosines = torch.cat([self.cosines, other.cosines], dim=1)
        return replace(self, cosines=cosines, sines=torch.cat([self.sines, other.sines], dim=1))

    def rows(self, rows: Tensor) -> Self:
        """Of some examples, as a beam search keeps them."""
        if len(self.cosines) == 1:
            return self
        at = rows.to(self.cosines.device)
        return replace(
            self, cosines=self.cosines.index_select(0, at), sines=self.sines.index_select(0, at)
        )


def keep_positions(attention: nn.Module) -> None:
    """Lets an attention of our own copy remember, while it runs, which positions it was given."""
    attention.register_forward_pre_hook(_remember, with_kwargs=True)
    attention.register_forward_hook(_forget, always_call=True)


def _remember(attention: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    vars(attention)[_POSITIONS] = kwargs.get("position_embeddings")


def _forget(attention: nn.Module, *_: object) -> None:
    vars(attention).pop(_POSITIONS, None)


def check_rotation(attention: nn.Module, keys: Tensor) -> None:
    """Refuses an attention whose rotation cannot be undone, while it runs.

    Args:
        attention: A module of transformers.
        keys: ``[N, H, C, D]`` after they were rotated.

    Raises:
        ModelError: Says why.
    """
    rotation = Rotation.of(attention)
    if rotation is None:
        raise ModelError(
            f"{type(attention).__name__} is given no cosines and sines of positions, so that its "
            f"keys are not known before a rotation: {_INSTEAD}"
        )
    try:
        again = rotation.done(rotation.undone(keys))
    except (RuntimeError, TypeError, ValueError) as error:
        # A function of other arguments, or of a part of the channels.
        raise ModelError(_not_undone(attention, str(error))) from error
    difference = float((again - keys).abs().max())
    if not difference <= _TOLERANCE * float(keys.abs().max()):
        raise ModelError(_not_undone(attention, f"keys came back {difference:.2g} off"))


def _not_undone(attention: nn.Module, why: str) -> str:
    return f"the rotation of {type(attention).__name__} cannot be undone ({why}): {_INSTEAD}"


def _function_of(attention: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The one of the file that has the class of a module.

    Raises:
        ModelError: If there is none.
    """
    for kind in type(attention).__mro__:
        found = vars(sys.modules[kind.__module__]).get(_FUNCTION)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise ModelError(
        f"the file of {type(attention).__name__} has no function {_FUNCTION}, so that its keys are "
        f"not known before their rotation: {_INSTEAD}"
    )
