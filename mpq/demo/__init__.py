"""A trained network and its data, small enough to ship: try a search without a download.

>>> from mpq import demo
>>> net = demo.make_net()
>>> images, labels = next(demo.held_out())
>>> tuple(net(images).shape)
(128, 10)

``scripts/train_demo.py`` makes both files that are read here.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator

import safetensors.torch
import torch
from torch import Tensor, nn

from mpq.demo.digits import load_split
from mpq.demo.network import DigitsNet

__all__ = ["calibration", "held_out", "make_net"]

_BATCH = 128
_NUM_CALIBRATION = 512  # four whole batches


def make_net() -> nn.Module:
    """The trained :class:`~mpq.demo.network.DigitsNet`, on the CPU and in evaluation mode.

    It maps images ``[N, 1, 8, 8]`` to logits ``[N, 10]``. Every call returns a new network.
    """
    # Bytes, not a path: an installed package may lie in a zip file.
    packed = importlib.resources.files("mpq.demo").joinpath("digits_net.safetensors").read_bytes()
    # On the meta device nothing is drawn, so the caller's random state stays as it was.
    with torch.device("meta"):
        net = DigitsNet()
    # `assign`, as copying numbers into tensors on the meta device does nothing.
    net.load_state_dict(safetensors.torch.load(packed), assign=True)
    return net.eval()


def calibration() -> Iterator[tuple[Tensor, Tensor]]:
    """The first 512 training examples, in batches of 128.

    Yields:
        Images ``[N, 1, 8, 8]``, float32, normalised, and labels ``[N]``, int64.
    """
    images, labels = load_split("train")
    # The first ones are a random sample: the file's order is random.
    return _batches(images[:_NUM_CALIBRATION], labels[:_NUM_CALIBRATION])


def held_out() -> Iterator[tuple[Tensor, Tensor]]:
    """All the 500 examples the network was not trained on, in batches of at most 128.

    Yields:
        Images ``[N, 1, 8, 8]``, float32, normalised, and labels ``[N]``, int64.
    """
    return _batches(*load_split("held_out"))


def _batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(labels), _BATCH):
        batch = slice(start, start + _BATCH)
        yield images[batch], labels[batch]
