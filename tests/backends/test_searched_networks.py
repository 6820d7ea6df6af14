"""What a search for a target promises: its result is exported, or nothing was estimated for it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.backends.c.compiler import compiler
from mpq.errors import MissingDependencyError, ModelError
from tests.backends.searches import refused

pytestmark = pytest.mark.usefixtures("same_process")
PACKAGES = {"c": (), "onnx-qdq": ("onnxscript", "onnxruntime"), "openvino": ("onnx", "openvino")}
"""Target to what it takes to export to it and to run it, beside a compiler."""
CHANNELS = 6
PLAIN = (
    "conv", "wide", "grouped", "depthwise", "stride", "norm", "relu", "relu6", "max", "mean",
    "shortcut",
)  # fmt: skip
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "halves": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
}
"""What C has no kernel for, beside layers that are called twice (``again``)."""


class Drawn(nn.Module):
    """Steps on images ``[N, 6, H, W]``, then linear layers."""

    def __init__(self, steps: Sequence[str], heads: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.names = tuple(steps)
        self.parts = nn.ModuleList(map(_part, steps))
        self.heads = nn.ModuleList(nn.Linear(CHANNELS, CHANNELS) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 6]``."""
        x = self.stem(x)
        for name, part in zip(self.names, self.parts, strict=True):
            x = _stepped(name, part, x)
        x = x.mean((2, 3))
        for head in self.heads:
            x = F.relu(head(x))
        return x


def _part(name: str) -> nn.Module:
    groups = {"grouped": 2, "depthwise": CHANNELS}.get(name, 1)
    stride = 2 if name == "stride" else 1
    if name in ("conv", "wide", "grouped", "depthwise", "stride", "shortcut", "again"):
        size = 5 if name == "wide" else 3
        return nn.Conv2d(CHANNELS, CHANNELS, size, stride, size // 2, groups=groups)
    return nn.BatchNorm2d(CHANNELS) if name == "norm" else nn.Identity()


def _stepped(name: str, part: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = part(x)
    if name == "shortcut":
        return F.relu(y) + x
    if name == "again":  # a layer that is called twice
        y = part(F.relu(y))
    if name in ("max", "mean"):
        pool = F.max_pool2d if name == "max" else F.avg_pool2d
        y = pool(x, 2, 1, padding=1)
    if name in ("relu", "relu6"):
        y = F.relu(x) if name == "relu" else F.relu6(x)
    return OTHERS[name](x) if name in OTHERS else y


def images() -> list[Tensor]:
    """Three batches, the same every time."""
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 8, 8, generator=draws) for _ in range(3)]


def needed(to: str) -> None:
    """Skips where the target cannot be exported to."""
    for package in PACKAGES[to]:
        pytest.importorskip(package)
    if to == "c":
        try:
            compiler()
        except MissingDependencyError as error:
            pytest.skip(str(error))


@st.composite
def networks(draw: Any) -> tuple[tuple[str, ...], nn.Module]:
    """Steps, one of which may be none of ``PLAIN``, and a network of them."""
    plain = draw(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=4))
    other = draw(st.sampled_from(["", "", "", "again", *OTHERS]))
    steps = tuple(filter(None, (*plain, other)))
    return steps, Drawn(steps, draw(st.integers(1, 2)), draw(st.integers(0, 99))).eval()


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_c_runs_what_a_search_chose_or_the_search_refused(
    drawn: tuple[tuple[str, ...], nn.Module],
) -> None:
    """A network is refused where there is no kernel for a step, and before an estimate alone."""
    needed("c")
    steps, model = drawn

    why = refused(model, images(), "c", "weight_bytes=0.9x:w8a8")

    assert bool(why) == any(step not in PLAIN for step in steps), (steps, why)


@pytest.mark.parametrize("to", ["onnx-qdq", "openvino"])
@settings(max_examples=2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(networks())
def test_graphs_of_onnx_take_all_of_these(
    to: str, drawn: tuple[tuple[str, ...], nn.Module]
) -> None:
    """What torch can trace, whatever is in it."""
    needed(to)

    assert refused(drawn[1], images(), to, "weight_bytes=0.9x:w8") == ""


@pytest.mark.parametrize("step", ["sigmoid", "tanh", "hardswish"])
def test_c_refuses_what_it_has_no_kernel_for(step: str) -> None:
    """By a search, with the layer before it."""
    why = refused(Drawn(["conv", step], 1, 0).eval(), images(), "c", "weight_bytes=0.9x:w8a8")

    assert f"c: {step} (after layer 'parts.0'): it has no kernel for {step}" in why


class Shared(nn.Module):
    """Two layers with one weight, each with its own bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        found: Tensor = self.second(F.relu(self.first(x)))
        return found


def test_c_says_that_a_weight_is_shared() -> None:
    """It is the weight that is shared, not the bias."""
    data = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0))]

    why = refused(Shared().eval(), data, "c", "weight_bytes=0.9x:w8a8")

    assert "layers 'first' and 'second' share a weight" in why


def test_batches_that_are_one_example_are_refused() -> None:
    """As C runs one row at a time."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x - x.mean(0))
            return found

    data = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0)) for _ in range(2)]

    with pytest.raises(ModelError, match="the target runs one row at a time"):
        mpq.Session.of(mpq.Task(Centred().eval(), data, to="c"))
