"""The demo's diffusion network: it is trained, and ranges by step are worth something on it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import mpq
from mpq.demo.denoiser import (
    NUM_STEPS,
    Denoiser,
    denoising_batches,
    kept_signal,
    noisy,
    sampled,
    trained_denoiser,
)
from mpq.demo.digits import load_split
from mpq.quantization.precision import Precision
from mpq.quantization.steps import Steps
from mpq.workflows.setup import Prepared


@pytest.fixture(scope="session")
def denoiser() -> Denoiser:
    """Trained for some seconds: enough to see noise, not to draw digits."""
    return trained_denoiser(60, width=16)


def test_it_sees_noise(denoiser: Denoiser) -> None:
    """Better than the guess of none, which is 1 off, on images that it has not seen."""
    images, _ = load_split("held_out")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    steps = torch.randint(NUM_STEPS, (len(images),), generator=generator)

    found = denoiser(noisy(images, steps, noise), steps)

    assert F.mse_loss(found, noise) < 0.5


def test_it_is_the_same_every_time() -> None:
    """And leaves the global random state alone."""
    torch.manual_seed(5)
    first, second, other = (trained_denoiser(2, seed, width=8) for seed in (0, 0, 1))
    drawn = torch.rand(1)
    torch.manual_seed(5)

    states = [net.state_dict()["last.weight"] for net in (first, second, other)]

    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert torch.equal(drawn, torch.rand(1))


def test_signal_falls_from_all_to_nothing() -> None:
    """Of every step, and never to nothing at all, which would be divided by."""
    kept = kept_signal()

    assert len(kept) == NUM_STEPS
    assert kept[0] > 0.99
    assert 0 < kept[-1] < 0.01
    assert bool((kept[1:] < kept[:-1]).all())


def test_batches_cover_all_steps_evenly_or_at_random() -> None:
    """In random order either way, and the same every time."""
    evenly, again, at_random = (
        torch.cat([b["timestep"] for b in denoising_batches(200, at_random=random)])
        for random in (False, False, True)
    )

    assert torch.equal(evenly, again)
    assert evenly.bincount().tolist() == [2] * NUM_STEPS
    assert not torch.equal(evenly, evenly.sort().values)
    assert len(at_random.unique()) < NUM_STEPS


def test_the_same_noise_gives_the_same_images(denoiser: Denoiser) -> None:
    """Whatever was drawn before."""
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    first, second = (sampled(denoiser, noise) for _ in range(2))

    assert torch.equal(first, second)
    assert bool(first.isfinite().all())


def test_ranges_by_step_lose_less_at_four_bits(denoiser: Denoiser) -> None:
    """On fresh noise, beyond chance: two standard errors of paired examples."""
    fresh = denoising_batches(256, 7, "held_out")
    data = denoising_batches(192)

    losses = []
    for clusters in (1, 4):
        steps = Steps("timestep", clusters, trial=False)
        task = mpq.Task(
            denoiser, data, fresh, candidates=["w8a4"], metric="squared-error",
            rounding="nearest", steps=steps,
        )  # fmt: skip
        measures = Prepared.of(task).on_held_out
        uniform = measures.uniform(Precision.parse("w8a4"))
        losses.append(measures.measure(uniform).by_example)

    gains = losses[0] - losses[1]
    assert gains.mean() > 2 * gains.std(ddof=1) / np.sqrt(len(gains))
