"""The data of the demo: 1797 handwritten digits of 8x8 pixels, shipped inside the package."""

from __future__ import annotations

import importlib.resources
import io
from typing import Literal

import numpy as np
import torch
from torch import Tensor

# Mean and standard deviation of all pixels in the training split, after division by 16.
_MEAN = 0.305
_STD = 0.376


def load_split(split: Literal["train", "held_out"]) -> tuple[Tensor, Tensor]:
    """All the images and labels of one split, in the file's order, which is random.

    Pixels are stored as integers from 0 to 16. They come back as sixteenths, shifted and scaled
    so that the training split has mean 0 and standard deviation 1.

    References: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository (CC BY 4.0), in the copy that scikit-learn ships.

    Returns:
        Images ``[N, 1, 8, 8]``, float32, and labels ``[N]``, int64, from 0 to 9. ``N`` is 1297
        for ``"train"`` and 500 for ``"held_out"``.
    """
    packed = importlib.resources.files("mpq.demo").joinpath("digits.npz").read_bytes()
    with np.load(io.BytesIO(packed)) as arrays:
        chosen = arrays[split]
        # The new axis is the one channel that a convolution expects; numpy has uint8.
        images = torch.from_numpy(arrays["images"][chosen]).float()[:, None]
        labels = torch.from_numpy(arrays["labels"][chosen]).long()
    return (images / 16 - _MEAN) / _STD, labels
