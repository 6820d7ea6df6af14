"""A transformer encoder on MNIST with unlike layers, trained here: for `mpq profile`.

Sixteen narrow tokens become four wide ones, then one: its layers are bound by arithmetic at the
beginning and by the traffic of their weights at the end, so that no format is the fastest for all.

Train it once, which takes a few minutes: ``python examples/pyramid_mnist.py pyramid.safetensors``;
then give mpq the weights with ``--weights pyramid.safetensors``. It is trained on the last 8,000
images of MNIST's test file and on 2,048 training images, as these are all there are in the data
folder, and measured on the first 2,000. The environment variable ``MPQ_DATA`` names the data folder
where it is not ``../shared/data``.

Reference: Heo et al. (2021), Rethinking spatial dimensions of vision transformers, ICCV.
arXiv:2103.16302. This one merges tokens by a linear layer instead of a convolution.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn import functional as F

DATA = Path(
    os.environ.get("MPQ_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)
BATCH_SIZE = 128
MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels, from 0 to 1
NUM_HELD_OUT = 2000
NUM_EPOCHS = 6

PATCH_SIZE, ACROSS = 7, 4  # pixels, patches
NARROW, WIDE = 128, 512
NUM_HEADS = 4
NUM_CLASSES = 10


class Attention(nn.Module):
    """Self-attention with several heads, written out."""

    def __init__(self, dim: int) -> None:
        """Make one layer for queries, keys and values together, and one for the output."""
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * dim)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, D]`` to ``[N, T, D]``."""
        n, t, dim = x.shape
        qkv = self.to_qkv(x).view(n, t, 3, NUM_HEADS, dim // NUM_HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, D / heads]
        weights = (q @ k.transpose(-2, -1) / (dim // NUM_HEADS) ** 0.5).softmax(-1)
        out: Tensor = self.to_out((weights @ v).transpose(1, 2).reshape(n, t, dim))
        return out


class Block(nn.Module):
    """Attention, then two linear layers around a GELU, each added to its input."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Make a block of so many features."""
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, D]`` to ``[N, T, D]``."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class Pyramid(nn.Module):
    """Two blocks of 16 narrow tokens, two of 4 wide ones, and a wide classifier."""

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.embed = nn.Linear(PATCH_SIZE**2, NARROW)
        self.position = nn.Parameter(torch.randn(1, ACROSS**2, NARROW) * 0.02)
        self.narrow = nn.Sequential(*(Block(NARROW, 4 * NARROW) for _ in range(2)))
        self.merge = nn.Linear(4 * NARROW, WIDE)
        self.wide = nn.Sequential(*(Block(WIDE, 4 * WIDE) for _ in range(2)))
        self.norm = nn.LayerNorm(WIDE)
        self.fc = nn.Linear(WIDE, 4 * WIDE)
        self.head = nn.Linear(4 * WIDE, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``[N, 1, 28, 28]`` to logits ``[N, NUM_CLASSES]``."""
        tokens = self.narrow(self.embed(_patches(x)) + self.position)
        merged = self.wide(self.merge(_joined(tokens)))
        logits: Tensor = self.head(F.gelu(self.fc(self.norm(merged.mean(dim=1)))))
        return logits


def _patches(x: Tensor) -> Tensor:
    """Map ``[N, 1, 28, 28]`` to ``[N, 16, 49]``, row by row."""
    grid = x.reshape(len(x), ACROSS, PATCH_SIZE, ACROSS, PATCH_SIZE).transpose(2, 3)
    return grid.reshape(len(x), ACROSS**2, PATCH_SIZE**2)


def _joined(tokens: Tensor) -> Tensor:
    """Map ``[N, 16, D]`` to ``[N, 4, 4 D]``: every square of four tokens is one."""
    half = ACROSS // 2
    grid = tokens.reshape(len(tokens), half, 2, half, 2, NARROW).transpose(2, 3)
    return grid.reshape(len(tokens), half**2, 4 * NARROW)


def make_net() -> Pyramid:
    """Return the network in eval mode with random weights."""
    return Pyramid().eval()


def calibration() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield 512 training images: ``x [N, 1, 28, 28]`` float32, ``y [N]`` int64."""
    return _batches(*_images("calib_train_2048.npz", slice(0, 512)))


def held_out() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield 2,000 images that it was not trained on, in the form of :func:`calibration`."""
    return _batches(*_images("test_10000.npz", slice(0, NUM_HELD_OUT)))


def _images(file_name: str, which: slice) -> tuple[Tensor, Tensor]:
    with np.load(DATA / "mnist" / file_name) as arrays:
        pixels = torch.from_numpy(arrays["x"][which]).unsqueeze(1).float()
        classes = torch.from_numpy(arrays["y"][which]).long()
    return (pixels / 255 - MEAN) / STD, classes


def _batches(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(x, BATCH_SIZE), torch.split(y, BATCH_SIZE), strict=True)


def train(seed: int = 0) -> Pyramid:
    """Train the network from scratch; the same seed gives the same weights on one machine."""
    torch.manual_seed(seed)
    model = Pyramid().train()
    parts = (
        _images("test_10000.npz", slice(NUM_HELD_OUT, None)),
        _images("calib_train_2048.npz", slice(None)),
    )
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    steps = NUM_EPOCHS * -(-len(x) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    for _ in range(NUM_EPOCHS):
        order = torch.randperm(len(x))
        for images, classes in _batches(x[order], y[order]):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(model(images.roll(shift, (2, 3))), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return the fraction of images whose largest logit is that of their class."""
    return torch.cat([model(x).argmax(1) == y for x, y in batches]).double().mean().item()


if __name__ == "__main__":
    (path,) = map(Path, sys.argv[1:])
    if path.exists():
        net = make_net()
        load_model(net, path)
    else:
        net = train()
        save_model(net, str(path))
    print(json.dumps({"model": "pyramid_mnist", "accuracy": accuracy(net, held_out())}))
