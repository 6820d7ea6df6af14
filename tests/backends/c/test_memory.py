"""Memory: the arena has the bytes that peak_ram counts, and no tensor lies on another one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpq.backends.c.arena import blocks_of, plan
from mpq.backends.c.steps import Step, Steps, Window
from mpq.cli.loading import load_callable
from mpq.demo import calibration, make_net
from mpq.hardware_profiles.peak_ram import peak_ram_bytes
from mpq.network.network import Network
from tests.backends.c.networks import Made, assigned

EXAMPLE = Path(__file__).parents[3] / "examples" / "resnet20_cifar10.py"
MIXES = [("w8a8",), ("w4a4",), ("w2a8", "w4a4", "w3a6")]


def resnet20() -> nn.Module:
    """Of the example, with random weights."""
    torch.manual_seed(0)
    found: nn.Module = load_callable(f"{EXAMPLE}:make_net")()
    return found


class Chain(nn.Module):
    """Random widths, strides and shortcuts."""

    def __init__(self, widths: list[int], strides: list[int], is_residual: list[bool]) -> None:
        super().__init__()
        pairs = zip([2, *widths[:-1]], widths, strides, strict=True)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=stride, padding=1) for a, b, stride in pairs
        )
        self.is_residual = is_residual
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, 2, 8, 8]`` to ``[N, 3]``."""
        for layer, is_residual in zip(self.layers, self.is_residual, strict=True):
            y = layer(x)
            x = torch.relu(y + x if is_residual and y.shape == x.shape else y)
        found: Tensor = self.head(x.mean((2, 3)))
        return found


def check(model: nn.Module, data: Tensor, mix: tuple[str, ...]) -> None:
    """The report's number and the planned arena."""
    found = assigned(model, data, mix)
    arena = Made.of(model, found, data).program.arena

    lifetimes = Network.of(model, [data]).lifetimes
    assert lifetimes is not None
    reported, _ = peak_ram_bytes(lifetimes, found.precisions)
    assert arena.num_bytes == arena.most_held == reported


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: "-".join(mix))
def test_the_demos_arena_is_its_peak_ram(mix: tuple[str, ...]) -> None:
    """Of a residual and depthwise network, at mixed bits of activations."""
    check(make_net(), next(iter(calibration()))[0][:4], mix)


@pytest.mark.parametrize("mix", [MIXES[0], MIXES[2]], ids=lambda mix: "-".join(mix))
def test_resnet20s_arena_is_its_peak_ram(mix: tuple[str, ...]) -> None:
    """Its shortcuts are cut and padded."""
    check(resnet20(), torch.randn(4, 3, 32, 32), mix)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_random_networks_arena_is_its_peak_ram(data: Any) -> None:
    """Whatever its widths and shortcuts are."""
    count = data.draw(st.integers(2, 5))
    widths = data.draw(st.lists(st.sampled_from([2, 4, 7]), min_size=count, max_size=count))
    strides = data.draw(st.lists(st.sampled_from([1, 1, 2]), min_size=count, max_size=count))
    residual = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    mix = data.draw(st.sampled_from(MIXES))
    torch.manual_seed(0)

    check(Chain(widths, strides, residual).eval(), torch.randn(4, 2, 8, 8), mix)


@st.composite
def step_lists(draw: Any) -> Steps:
    """Steps of one or two inputs each, the last one the output's."""
    elements, steps = {"x": draw(st.integers(1, 40))}, []
    for number in range(draw(st.integers(1, 12))):
        first = draw(st.sampled_from(sorted(elements)))
        is_add = draw(st.booleans())
        others = [n for n in sorted(elements) if n != first and elements[n] == elements[first]]
        name = f"t{number:02}"
        if is_add:
            reads = (first, draw(st.sampled_from(others))) if others else (first,)
            elements[name], kind = elements[first], "add" if others else "move"
        else:
            reads, kind, elements[name] = (first,), "layer", draw(st.integers(1, 40))
        shapes = ((elements[first], 1, 1), (elements[name], 1, 1))
        steps.append(Step(kind, reads, name, shapes, Window(), "l" if kind == "layer" else None))
    # What nobody reads but the output is left out, as a network's graph has none.
    read = {name for step in steps for name in step.reads}
    kept = [step for step in steps[:-1] if step.makes in read] + steps[-1:]
    if not any("x" in step.reads for step in kept):
        kept[0] = Step("layer", ("x",), kept[0].makes, kept[0].shapes, Window(), "l")
    known = {"x", *(step.makes for step in kept)}
    kept = [s if set(s.reads) <= known else Step("layer", ("x",), s.makes, s.shapes) for s in kept]
    return Steps(tuple(kept), "x", elements, (1,))


@settings(max_examples=150, deadline=None)
@given(steps=step_lists(), data=st.data())
def test_no_tensor_lies_on_another(steps: Steps, data: Any) -> None:
    """In no step, and no byte outside of the arena."""
    bits = {name: data.draw(st.integers(2, 8)) for name in steps.elements}

    arena = plan(steps, bits)

    blocks = blocks_of(steps, bits)
    for t in range(len(steps.steps)):
        held = sorted(
            (arena.offsets[block.names[0]], block.held[t]) for block in blocks if t in block.held
        )
        ends = [0, *(start + size for start, size in held)]
        assert all(start >= end for (start, _), end in zip(held, ends, strict=False))
        assert max(ends) <= arena.num_bytes
        assert sum(size for _, size in held) <= arena.most_held
    assert arena.num_bytes >= arena.most_held
