"""A file as users have one, with a network and its data, for commands that name it."""

_TEXT = """
import torch
from torch import nn

def make_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 64, 32), nn.ReLU(), nn.Linear(32, 10),
    ).eval()

def calibration():
    generator = torch.Generator().manual_seed(1)
    for _ in range(NUM_BATCHES):
        yield torch.randn(16, 1, 8, 8, generator=generator)
"""


def user_file(num_batches: int) -> str:
    """Its text: ``make_net`` and ``calibration``, which yields so many batches of 16 images."""
    return _TEXT.replace("NUM_BATCHES", str(num_batches))
