"""Random small networks: which parts in which order, how they are called and what they return."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.generated.parts import TOKENS, WIDTH
from tests.generated.steps import LAYERS, OPERATIONS

CLASSES: Final = 3
DTYPES: Final = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64
}  # fmt: skip
MOSTLY_FLOAT32: Final = ("float32", "float32", "float32", "bfloat16", "float64")
"""As networks are mostly, and as rounding of bfloat16 hides small errors."""
FRONTS: Final = ("features", "ids", "tied ids")
"""What the network reads: numbers, token ids, or ids whose table is the head's matrix too."""
CALLS: Final = ("position", "keyword", "mask", "nested")
HEADS: Final = {
    "logits": "kl",
    "token logits": "kl",
    "dict": "kl",
    "named": "outputs:terms=logits=kl+boxes=squared-error:relative=true*0.5",
    "tuple": "outputs:terms=0=kl+1.boxes=squared-error",
    "record": "kl",
    "number": "squared-error",
    "states": "cosine",
}
"""What it returns, and how that is compared."""
QUIRKS: Final = (
    "frozen", "gradients", "reading hook", "scaling hook", "pre hook", "backward hook", "state hook"
)  # fmt: skip
"""In what condition it is when it is handed over."""


@dataclass
class Answer:
    """Logits beside something else, as an object."""

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Recipe:
    """All that a network is made from; equal recipes make equal networks.

    Args:
        steps: Names of ``LAYERS`` and ``OPERATIONS``, in order.
        front: One of ``FRONTS``.
        call: One of ``CALLS``: how the inputs are given.
        head: One of ``HEADS``.
        dtype: One of ``DTYPES``.
        quirks: Some of ``QUIRKS``.
        seed: Of weights and inputs.
    """

    steps: tuple[str, ...]
    front: str = "features"
    call: str = "position"
    head: str = "logits"
    dtype: str = "float32"
    quirks: tuple[str, ...] = ()
    seed: int = 0

    def build(self) -> tuple[nn.Module, list[Any]]:
        """The network in evaluation mode, and two batches of unequal size."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Generated(self)
            model.to(DTYPES[self.dtype]).eval()
            for quirk in self.quirks:
                _QUIRKS[quirk](model)
            return model, [self._batch(4), self._batch(3)]

    @property
    def metric(self) -> str:
        """How its outputs are compared."""
        return HEADS[self.head]

    def _batch(self, size: int) -> Any:
        x = torch.randn(size, TOKENS, WIDTH).to(DTYPES[self.dtype])
        if self.front != "features":
            x = torch.randint(0, 7, (size, TOKENS))
        mask = (torch.rand(size, TOKENS) > 0.2).to(DTYPES[self.dtype])
        return {
            "position": x,
            "keyword": {"x": x},
            "mask": ((x, mask), None),
            "nested": ((x, (mask, {"shift": mask * 0.1})), None),
        }[self.call]


class Generated(nn.Module):
    """The network of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.head_kind = recipe.head
        self.table = None if recipe.front == "features" else nn.Embedding(7, WIDTH)
        made = (({**LAYERS, **OPERATIONS})[name]() for name in recipe.steps)
        self.steps = nn.ModuleList(made)
        is_tied = self.table is not None and recipe.front == "tied ids"
        self.head = nn.Linear(WIDTH, 7 if is_tied else CLASSES)
        if is_tied:
            assert self.table is not None
            self.head.weight = self.table.weight
        self.boxes = nn.Linear(WIDTH, 4) if recipe.head not in ("logits", "token logits") else None

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        h: Tensor = x if self.table is None else self.table(x)
        if isinstance(mask, tuple):
            mask, options = mask
            h = h + options["shift"][..., None]
        if mask is not None:
            h = h * mask[..., None]
        for step in self.steps:
            h = step(h)
        if self.head_kind == "token logits":
            return self.head(h)
        pooled = h.mean(1)
        logits = self.head(pooled)
        if self.boxes is None:
            return logits
        boxes = self.boxes(pooled)
        found: dict[str, Any] = {
            "dict": {"logits": logits, "boxes": boxes},
            "named": {"boxes": boxes, "logits": logits},
            "tuple": (logits, {"boxes": boxes}),
            "record": Answer(logits, boxes),
            "number": logits[:, 0] + boxes[:, 0],
            "states": {"last_hidden_state": torch.cat([h.tanh(), h], 2), "boxes": boxes},
        }
        return found[self.head_kind]


def _freeze(model: nn.Module) -> None:
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)


def _give_gradients(model: nn.Module) -> None:
    for parameter in list(model.parameters())[1::2]:
        if parameter.is_floating_point():
            parameter.grad = torch.ones_like(parameter)


def _first_layer(model: nn.Module) -> nn.Module:
    plain = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv1d, nn.Conv2d)]
    return plain[0]


def _nothing(*_: Any) -> None:
    """Looks on."""


def _half(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output * 0.5


def _shift(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x + 0.25 for x in args)


_QUIRKS: Final[dict[str, Callable[[nn.Module], Any]]] = {
    "frozen": _freeze,
    "gradients": _give_gradients,
    "reading hook": lambda model: _first_layer(model).register_forward_hook(_nothing),
    "scaling hook": lambda model: _first_layer(model).register_forward_hook(_half),
    "pre hook": lambda model: _first_layer(model).register_forward_pre_hook(_shift),
    "backward hook": lambda model: model.get_submodule("head").register_full_backward_hook(
        _nothing
    ),
    "state hook": lambda model: model.register_state_dict_post_hook(_nothing),
}


@st.composite
def recipes(
    draw: st.DrawFn,
    heads: Sequence[str] = tuple(HEADS),
    dtypes: Sequence[str] = MOSTLY_FLOAT32,
) -> Recipe:
    """Recipes of one to four steps, one of them at least with a weight."""
    steps = draw(st.lists(st.sampled_from(tuple(LAYERS)), min_size=1, max_size=3))
    if draw(st.booleans()):
        place = draw(st.integers(0, len(steps)))
        steps.insert(place, draw(st.sampled_from(tuple(OPERATIONS))))
    front = draw(st.sampled_from(FRONTS))
    return Recipe(
        tuple(steps),
        front,
        draw(st.sampled_from(CALLS)),
        draw(st.sampled_from(heads)),
        draw(st.sampled_from(dtypes)),
        tuple(draw(st.lists(st.sampled_from(QUIRKS), max_size=2, unique=True))),
        draw(st.integers(0, 999)),
    )
