"""Small networks with outlier channels, and random ones, for tests of transformations."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

OUTLIER = 3


class Attention(nn.Module):
    """Heads in one projection for queries, keys and values, as vision transformers have them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        return found


class Gated(nn.Module):
    """A gated feed-forward network."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return found


class Block(nn.Module):
    """Attention and a feed-forward network beside shortcuts."""

    def __init__(self, dim: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attention = norm(dim), Attention(dim, 2)
        self.norm2, self.gated = norm(dim), Gated(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        found: Tensor = x + self.gated(self.norm2(x))
        return found


class Words(nn.Module):
    """A language model; the head may share its weight with the embedding."""

    def __init__(self, is_tied: bool, norm: type[nn.Module] = nn.RMSNorm) -> None:
        super().__init__()
        self.words = nn.Embedding(13, 16)
        self.blocks = nn.Sequential(Block(16, norm), Block(16, norm))
        self.norm = norm(16)
        self.head = nn.Linear(16, 13, bias=False)
        if is_tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.blocks(self.words(ids))))
        return found


class Shortcut(nn.Module):
    """Numbers go around some modules, too."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.inner(x)
        return found


def jittered(net: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with no parameter left at 0 or 1, and statistics of a BatchNorm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.rand(parameter.shape, generator=generator)
            parameter.add_(0.2 * noise + 0.05)
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return net.eval()


def outlier_net() -> nn.Sequential:
    """Each channel of what layers read is alike, but one, which is a hundred times larger."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    norm, first, _, second = net
    with torch.no_grad():
        for weight, of in ((norm.weight, first), (first.weight, second)):
            weight[OUTLIER] *= 100  # type: ignore[index, operator]
            of.weight[:, OUTLIER] /= 100  # type: ignore[index, operator]
    return net.eval()


def outlier_stream() -> nn.Sequential:
    """A stream, one channel of which is thirty times larger, which no normalization takes away."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(200, 32), nn.RMSNorm(32), nn.Linear(32, 8))
    writer, norm, reader = net
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)  # type: ignore[operator]
        writer.weight[:, OUTLIER] *= 30  # type: ignore[index, operator]
        reader.weight[:, OUTLIER] /= 30  # type: ignore[index, operator]
    return net.eval()


def planes() -> st.SearchStrategy[nn.Module]:
    """Convolutions on ``[N, 4, 8, 8]`` of every kind, with what may stand between them."""
    between: st.SearchStrategy[Callable[[], nn.Module]] = st.sampled_from(
        [
            lambda: nn.ReLU(),
            lambda: nn.ReLU(inplace=True),
            lambda: nn.ReLU6(),
            lambda: nn.LeakyReLU(),
            lambda: nn.PReLU(),
            lambda: nn.PReLU(4),
            lambda: nn.GELU(),
            lambda: nn.Identity(),
            lambda: nn.BatchNorm2d(4),
            lambda: nn.GroupNorm(2, 4),
            lambda: nn.Upsample(scale_factor=2),
            lambda: nn.Dropout(),
        ]
    )
    layer: st.SearchStrategy[Callable[[], nn.Module]] = st.sampled_from(
        [
            lambda: nn.Conv2d(4, 4, 3, padding=1),
            lambda: nn.Conv2d(4, 4, 1, bias=False),
            lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
            lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
            lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            lambda: nn.ConvTranspose2d(4, 4, 3, padding=1),
            lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
            lambda: Shortcut(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        ]
    )
    tail: st.SearchStrategy[Callable[[], list[nn.Module]]] = st.sampled_from(
        [
            lambda: [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)],
            lambda: [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)],
            lambda: [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Softmax(-1)],
        ]
    )

    @st.composite
    def net(draw: st.DrawFn) -> nn.Module:
        torch.manual_seed(draw(st.integers(0, 99)))
        modules = [draw(layer)()]
        for _ in range(draw(st.integers(1, 4))):
            modules += [draw(between)(), draw(layer)()]
        if draw(st.booleans()):  # called a second time
            modules.append(modules[0])
        return jittered(nn.Sequential(*modules, *draw(tail)()))

    return net()
