"""A small vision transformer on MNIST: a model and two functions that yield data, for mpq.

Give mpq the trained weights with ``--weights ../shared/data/mnist/vit_mnist.safetensors``; run
this file to measure the network as it is, in float. The environment variable ``MPQ_DATA`` names
the data folder where it is not ``../shared/data``.

Reference: Dosovitskiy et al. (2021), An image is worth 16x16 words, ICLR. arXiv:2010.11929. This
one has ReLU in the place of GELU, and heads that are together wider than the tokens.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn

DATA = Path(
    os.environ.get("MPQ_DATA") or Path(__file__).resolve().parents[1].parent / "shared" / "data"
)
BATCH_SIZE = 128
MEAN, STD = 0.1307, 0.3081  # of MNIST's pixels, from 0 to 1

IMAGE_SIZE, PATCH_SIZE = 28, 4  # pixels
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
DIM, DEPTH, HIDDEN = 64, 6, 128
NUM_HEADS, HEAD_DIM = 4, 64
NUM_CLASSES = 10


class Patches(nn.Module):
    """Cut an image into square patches, row by row."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[N, 1, 28, 28]`` to ``[N, 49, 16]``."""
        across = IMAGE_SIZE // PATCH_SIZE
        grid = x.reshape(len(x), across, PATCH_SIZE, across, PATCH_SIZE).transpose(2, 3)
        return grid.reshape(len(x), NUM_PATCHES, PATCH_SIZE**2)


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self) -> None:
        """Make one linear layer for queries, keys and values together, and one for the output."""
        super().__init__()
        inner = NUM_HEADS * HEAD_DIM
        self.to_qkv = nn.Linear(DIM, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, DIM]`` to ``[N, T, DIM]``."""
        n, t, _ = x.shape
        qkv = self.to_qkv(x).view(n, t, 3, NUM_HEADS, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, heads, T, HEAD_DIM]
        # Written out, because PyTorch's fused attention cannot be differentiated twice, which
        # estimators that read the Hessian need.
        weights = (q @ k.transpose(-2, -1) / HEAD_DIM**0.5).softmax(-1)  # [N, heads, T, T]
        out: Tensor = self.to_out((weights @ v).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two linear layers around a ReLU."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        # The identity stands where training had dropout, so that the names count as they did.
        self.net = nn.Sequential(
            nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Identity(), nn.Linear(HIDDEN, DIM)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, DIM]`` to ``[N, T, DIM]``."""
        out: Tensor = self.net(x)
        return out


class PreNormResidual(nn.Module):
    """``x + fn(norm(x))``."""

    def __init__(self, fn: nn.Module) -> None:
        """Wrap ``fn``, which keeps the shape of its input."""
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``[N, T, DIM]`` to ``[N, T, DIM]``."""
        out: Tensor = x + self.fn(self.norm(x))
        return out


class VisionTransformer(nn.Module):
    """Patches and a class token through six blocks; the class token is classified."""

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.to_patch_embedding = nn.Sequential(Patches(), nn.Linear(PATCH_SIZE**2, DIM))
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embedding = nn.Parameter(torch.randn(1, NUM_PATCHES + 1, DIM))
        blocks = (
            nn.Sequential(PreNormResidual(Attention()), PreNormResidual(FeedForward()))
            for _ in range(DEPTH)
        )
        self.transformer = nn.Sequential(OrderedDict(layers=nn.Sequential(*blocks)))
        self.mlp_head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``[N, 1, 28, 28]`` to logits ``[N, NUM_CLASSES]``."""
        patches = self.to_patch_embedding(x)  # [N, NUM_PATCHES, DIM]
        class_token = self.cls_token.expand(len(x), -1, -1)
        tokens = torch.cat([class_token, patches], dim=1) + self.pos_embedding
        logits: Tensor = self.mlp_head(self.transformer(tokens)[:, 0])
        return logits


def make_net() -> VisionTransformer:
    """Return the network in eval mode with random weights; the trained ones are in a file."""
    return VisionTransformer().eval()


def calibration() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield 512 training images: ``x [N, 1, 28, 28]`` float32, ``y [N]`` int64."""
    return _batches("calib_train_2048.npz", num_images=512)


def held_out() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first 2,000 test images, in the form of :func:`calibration`."""
    return _batches("test_10000.npz", num_images=2000)


def _batches(file_name: str, num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    with np.load(DATA / "mnist" / file_name) as arrays:
        pixels = torch.from_numpy(arrays["x"][:num_images]).unsqueeze(1)  # [N, 1, 28, 28]
        classes = torch.from_numpy(arrays["y"][:num_images]).long()
    for x, y in zip(torch.split(pixels, BATCH_SIZE), torch.split(classes, BATCH_SIZE), strict=True):
        yield (x.float() / 255 - MEAN) / STD, y


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Return the fraction of images whose largest logit is that of their class."""
    return torch.cat([model(x).argmax(1) == y for x, y in batches]).double().mean().item()


if __name__ == "__main__":
    net = make_net()
    load_model(net, DATA / "mnist" / "vit_mnist.safetensors")
    print(json.dumps({"model": "vit_mnist", "accuracy": accuracy(net, held_out())}))
