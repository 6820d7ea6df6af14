"""Train the demo's network on scikit-learn's digits and write both files of ``mpq/demo``.

Run ``python scripts/train_demo.py`` from an installed checkout (``pip install -e .`` and
``pip install scikit-learn``). It takes one core and half a minute, and prints what came of it
as JSON. With the same versions on the same processor the files come out the same, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

import mpq.demo
from mpq.demo.digits import load_split
from mpq.demo.network import DigitsNet

SEED = 0
NUM_HELD_OUT = 500
# Few epochs on purpose, so that precision matters: 4 bits for every layer add 0.009 nats to the
# calibration loss after 20 epochs, and at most 0.001 after 60.
EPOCHS = 20
BATCH = 128
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01

_FOLDER = Path(mpq.demo.__file__).parent
_DATA = _FOLDER / "digits.npz"
_WEIGHTS = _FOLDER / "digits_net.safetensors"


def write_data() -> None:
    """Write the images ``[1797, 8, 8]``, their labels ``[1797]`` and a stratified split."""
    digits = load_digits()
    train, held_out = train_test_split(
        np.arange(len(digits.target), dtype=np.uint16),
        test_size=NUM_HELD_OUT,
        stratify=digits.target,
        random_state=SEED,
    )
    np.savez_compressed(
        _DATA,
        images=digits.images.astype(np.uint8),
        labels=digits.target.astype(np.uint8),
        train=train,
        held_out=held_out,
    )


def augment(images: Tensor) -> Tensor:
    """Turn, subgraph and shift each image a little, at random.

    Args:
        images: ``[N, 1, 8, 8]``, normalised.

    Returns:
        The same shape; outside the image its nearest border pixel counts.
    """
    angle = 0.2 * torch.randn(len(images))  # radians
    subgraph = 1 + 0.1 * torch.randn(len(images), 1, 2)
    shift = 0.12 * torch.randn(len(images), 2, 1)  # in half images: about half a pixel
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)  # [N, 2, 2]
    affine = torch.cat([turn * subgraph, shift], dim=2)  # [N, 2, 3]
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(images: Tensor, labels: Tensor) -> DigitsNet:
    """A network trained on images ``[N, 1, 8, 8]`` and labels ``[N]``, in evaluation mode."""
    net = DigitsNet()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=WEIGHT_DECAY)
    # The remainder of an epoch is dropped: a batch of a few spoils the batch statistics.
    num_batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, EPOCHS * num_batches
    )
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[: num_batches * BATCH].view(-1, BATCH):
            loss = functional.cross_entropy(net(augment(images[batch])), labels[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy, from 0 to 1, and mean cross entropy, in nats."""
    logits = net(images)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return float(accuracy), float(functional.cross_entropy(logits, labels))


def main() -> None:
    """Write the data, train, write the weights, and report on what was written."""
    torch.set_num_threads(1)  # sums in another order would give other weights
    torch.manual_seed(SEED)
    write_data()
    weights = train(*load_split("train")).state_dict()
    # Not save_file: its files are readable by their owner alone, also from within a wheel.
    _WEIGHTS.write_bytes(safetensors.torch.save(weights))

    net = mpq.demo.make_net()
    train_accuracy, train_loss = evaluate(net, *load_split("train"))
    accuracy, loss = evaluate(net, *load_split("held_out"))
    report = {
        "held_out_accuracy": accuracy,
        "held_out_loss_nats": loss,
        "train_accuracy": train_accuracy,
        "train_loss_nats": train_loss,
        "num_parameters": sum(parameter.numel() for parameter in net.parameters()),
        "data_bytes": _DATA.stat().st_size,
        "weights_bytes": _WEIGHTS.stat().st_size,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
