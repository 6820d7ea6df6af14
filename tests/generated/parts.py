"""Modules that steps of generated networks are made of, as users write them."""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS: Final = 4
WIDTH: Final = 6
Change = Callable[[Tensor], Tensor]


class Tokens(nn.Module):
    """A module, and what is done around it."""

    def __init__(self, inner: nn.Module, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self._run = inner, run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.inner, x)


class Free(nn.Module):
    """A parameter that a function uses."""

    def __init__(self, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel, self._run = nn.Parameter(0.4 * torch.randn(shape)), run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.kernel)


class Computing(nn.Module):
    """A weight that is computed from parameters and a mask in every pass."""

    mask: Tensor

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel, self._run = nn.Parameter(0.4 * torch.randn(WIDTH, WIDTH)), run
        self.others = nn.ParameterList([0.4 * torch.randn(WIDTH, WIDTH) for _ in range(2)])
        self.register_buffer("mask", torch.rand(WIDTH, WIDTH) > 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self, x)


class Operation(nn.Module):
    """No weight at all."""

    def __init__(self, run: Change) -> None:
        super().__init__()
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)


class Scaled(nn.Linear):
    """A forward of its own: a scale behind the product."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) * 4


class Equalised(nn.Linear):
    """A forward of its own: the weight is scaled."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.linear(input, self.weight * 0.2, self.bias)


class Standardised(nn.Conv1d):
    """A forward of its own: the weight is standardised."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        mean, spread = self.weight.mean((1, 2), True), self.weight.std((1, 2), keepdim=True)
        return F.conv1d(input, (self.weight - mean) / (spread + 1e-5), self.bias, 1, 1)


class Padded(nn.Conv1d):
    """A forward of its own: it pads first."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(F.pad(input, (1, 1)))


class Positions(nn.Embedding):
    """A forward of its own: a shape is its argument, and not ids."""

    def forward(self, shape: torch.Size) -> Tensor:  # type: ignore[override]
        return super().forward(torch.arange(shape[1], device=self.weight.device))


class Pair(nn.Module):
    """Two layers, and what is done with them."""

    def __init__(
        self, first: nn.Module, second: nn.Module, run: Callable[[Any, Any, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.first, self.second, self._run = first, second, run

    def forward(self, x: Tensor) -> Tensor:
        return self._run(self.first, self.second, x)


class Looped(nn.Module):
    """A recurrent cell, token by token."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, found = None, []
        for token in x.unbind(1):
            state = self.cell(token, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, 1)


class Experts(nn.Module):
    """A matrix for each expert in one parameter; every token goes to one of them."""

    def __init__(self, is_looping: bool) -> None:
        super().__init__()
        self.router, self.is_looping = nn.Linear(WIDTH, 3), is_looping
        self.up = nn.Parameter(0.4 * torch.randn(3, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        share = self.router(x).softmax(-1)
        if not self.is_looping:
            rows = x.reshape(1, -1, WIDTH).expand(3, -1, -1)
            every = torch.bmm(rows, self.up).reshape(3, *x.shape)
            return torch.einsum("nte,entw->ntw", share, every)
        chosen, out = share.argmax(-1), torch.zeros_like(x)
        for expert in range(3):
            taken = chosen == expert
            out[taken] = x[taken] @ self.up[expert]
        return out


class Counting(nn.Module):
    """Writes down in a buffer, an attribute and a cache what it saw."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.seen = nn.Linear(WIDTH, WIDTH), 0
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", torch.zeros(TOKENS, WIDTH), persistent=False)
        self.cache: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        self.last = x[0].detach().clone()
        self.cache = [x.detach()]
        out: Tensor = self.fc(x)
        return out


class Listed(nn.Module):
    """Weights in a list and a dict of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.ParameterList([0.4 * torch.randn(WIDTH, WIDTH) for _ in range(2)])
        self.named = nn.ParameterDict({"out": 0.4 * torch.randn(WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        for each in self.each:
            x = F.linear(x, each).tanh()
        found: Tensor = x @ self.named["out"]
        return found


class Odd(nn.Module):
    """Parameters and buffers of other types, some never used, beside a layer."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.never = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)
        self.unused = nn.Parameter(torch.randn(3, 5))
        self.shift = nn.Parameter(torch.zeros(WIDTH), requires_grad=False)
        self.order = nn.Parameter(torch.arange(WIDTH), requires_grad=False)
        self.register_buffer("turn", torch.ones(WIDTH // 2, dtype=torch.complex64))
        self.register_buffer("mask", torch.ones(TOKENS, 1, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)[..., self.order]
        return out * self.mask + self.shift


class Named(nn.Module):
    """A layer that is called with its input as a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(input=x)
        return out


class SelfAttention(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.attention(x, x, x, need_weights=False)[0], None
