"""A small diffusion network on the digits of the demo: what steps are tried on.

Trained where it is needed, within seconds, as no weights of it are shipped.
"""

from collections.abc import Callable
from math import cos, log, pi
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.demo.digits import load_split

NUM_STEPS: Final = 100
"""Of the diffusion: step 0 has nearly no noise, the last one nothing else."""
_BATCH: Final = 64


@final
class Denoiser(nn.Module):
    """Predicts the noise in an image from the image and its step; 82,000 parameters.

    A U-Net of two resolutions (Ho et al. 2020, arXiv:2006.11239), called as those of diffusers are:
    ``forward(sample, timestep)`` with images ``[N, 1, 8, 8]`` and steps ``[N]``, or one for all.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.fine = _Block(width, width, width)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.coarse = _Block(width, width, width)
        self.joined = _Block(2 * width, width, width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """``[N, 1, 8, 8]`` of noise."""
        told = self.time(_waves(timestep.expand(len(sample)), self.width).to(sample.dtype))
        fine = self.fine(self.first(sample), told)
        coarse = self.coarse(self.down(fine), told)
        both = torch.cat([F.interpolate(coarse, scale_factor=2.0), fine], dim=1)
        found: Tensor = self.last(F.silu(self.joined(both, told)))
        return found


class _Block(nn.Module):
    """Two convolutions, told the step between them, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.told = nn.Linear(told, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = inner + self.told(F.silu(told))[:, :, None, None]
        found: Tensor = self.conv2(F.silu(self.norm2(inner))) + self.shortcut(x)
        return found


def _waves(steps: Tensor, width: int) -> Tensor:
    """``[N, width]`` sines and cosines of a step, of periods from short to long."""
    exponents = torch.arange(width // 2, device=steps.device) / (width // 2)
    angles = steps.float()[:, None] * torch.exp(-log(1000.0) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def kept_signal() -> Tensor:
    """``[T]`` share of the image's variance that is left at each step, falling from 1 to 0.

    The cosine schedule of Nichol and Dhariwal (2021), arXiv:2102.09672.
    """
    shares = [cos((t / NUM_STEPS + 0.008) / 1.008 * pi / 2) ** 2 for t in range(NUM_STEPS + 1)]
    return torch.tensor([max(share / shares[0], 1e-4) for share in shares[1:]])


def noisy(images: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
    """Images ``[N, 1, 8, 8]`` as they are at steps ``[N]`` of the diffusion."""
    kept = kept_signal()[steps][:, None, None, None]
    return kept.sqrt() * images + (1 - kept).sqrt() * noise


def trained_denoiser(num_updates: int = 300, seed: int = 0, width: int = 32) -> Denoiser:
    """A network in evaluation mode, the same every time on one machine.

    Args:
        num_updates: Of 64 images each, of the training split.
        seed: Of first weights, images, steps and noise; the global random state stays.
        width: Channels.
    """
    images, _ = load_split("train")
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        model = Denoiser(width)
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, num_updates)
        for _ in range(num_updates):
            some = images[torch.randint(len(images), (_BATCH,))]
            steps, noise = torch.randint(NUM_STEPS, (_BATCH,)), torch.randn(some.shape)
            loss = F.mse_loss(model(noisy(some, steps, noise), steps), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def denoising_batches(
    num_examples: int, seed: int = 0, split: str = "train", at_random: bool = False
) -> list[dict[str, Any]]:
    """Inputs of the denoiser: images at their steps, in batches of 64.

    Args:
        num_examples: How many.
        seed: Of images and noise, and of steps at random.
        split: ``train`` or ``held_out``, whose images are taken.
        at_random: Whether steps are drawn; else they are spread evenly over all, in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    images, _ = load_split("held_out" if split == "held_out" else "train")
    some = images[torch.randint(len(images), (num_examples,), generator=generator)]
    steps = torch.randint(NUM_STEPS, (num_examples,), generator=generator)
    if not at_random:
        evenly = torch.arange(num_examples) * NUM_STEPS // num_examples
        steps = evenly[torch.randperm(num_examples, generator=generator)]
    samples = noisy(some, steps, torch.randn(some.shape, generator=generator))
    pairs = zip(samples.split(_BATCH), steps.split(_BATCH), strict=True)
    return [{"sample": sample, "timestep": timestep} for sample, timestep in pairs]


@torch.no_grad()
def sampled(model: Callable[..., Tensor], noise: Tensor, seed: int = 0) -> Tensor:
    """Images ``[N, 1, 8, 8]`` out of noise, by the whole reverse process (Ho et al. 2020).

    Args:
        model: A denoiser, quantized or not.
        noise: ``[N, 1, 8, 8]`` that it begins with.
        seed: Of the noise that is added at every step: two networks meet the same.
    """
    generator, kept = torch.Generator().manual_seed(seed), kept_signal()
    before = torch.cat([torch.ones(1), kept[:-1]])
    x = noise
    for step in reversed(range(NUM_STEPS)):
        told = torch.full((len(x),), step)
        share, last = kept[step], before[step]
        image = (x - (1 - share).sqrt() * model(x, told)) / share.sqrt()
        # Digits are within these numbers; the first steps divide by almost nothing.
        image = image.clamp(-1.0, 2.0)
        scale = share / last
        mean = image * last.sqrt() * (1 - scale) + x * scale.sqrt() * (1 - last)
        fresh = torch.randn(x.shape, generator=generator)
        variance = (1 - scale) * (1 - last) / (1 - share)
        x = mean / (1 - share) + variance.sqrt() * fresh
    return x
