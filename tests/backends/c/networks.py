"""Small networks for microcontrollers, and what an export makes of them: for its tests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.backends.c.fixed_point import Integers
from mpq.backends.c.integer import run_integers
from mpq.backends.c.program import Program
from mpq.backends.c.rounded import Rounded
from mpq.backends.c.source import texts
from mpq.backends.c.target import input_codes, integer_program, rounded_of
from mpq.backends.target import Shipped
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision


class Everything(nn.Module):
    """Each operation that there is a kernel for, in ways that no other one is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 1))
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4, bias=False)
        self.depth = nn.Conv2d(12, 12, 3, padding="same", groups=12)
        self.short = nn.Conv2d(8, 12, 1)
        self.last = nn.Conv2d(16, 6, 3, stride=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, 3, 11, 9]`` to ``[N, 5]``."""
        x = F.relu6(self.norm(self.stem(x)))
        y = self.depth(F.relu(self.wide(x))) + self.short(x)
        y = F.max_pool2d(F.relu(y), 3, 2, padding=1)
        y = F.pad(y[:, :, :, 1::2], (0, 1, 1, 0, 2, 2))
        y = self.last(F.avg_pool2d(F.relu(y), (2, 1), padding=(1, 0)))
        found: Tensor = self.head(F.dropout(y.flatten(1), training=self.training))
        return found


class Line(nn.Module):
    """Convolutions of a line; its output is a mean, and no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 5, stride=2, padding=2)
        self.second = nn.Conv1d(6, 6, 3, padding=1, groups=3)
        self.third = nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, 2, 24]`` to ``[N, 4]``."""
        x = F.relu(self.first(x))
        x = F.relu(self.second(x) + x)
        found: Tensor = self.third(x).mean(-1)
        return found


class Unfused(nn.Module):
    """Additions and ReLUs that are no part of a layer, in the place of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, 2, 6, 6]`` to ``[N, 3]``."""
        x = self.a(x)
        y = self.b(F.relu(x))
        z = self.c(F.relu6(y))
        found: Tensor = self.head(F.relu(y + z + x).view(-1, 4 * 36))
        return found


class Pools(nn.Module):
    """Pools of lines and pixels, cuts from behind, modules where others have functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 4, padding="same", dilation=2)
        self.second = nn.Conv1d(4, 6, 3)
        self.third = nn.Conv2d(6, 5, (2, 1))
        self.act = nn.Hardtanh(-0.5, 1.5)
        self.pad = nn.ZeroPad2d((0, 0, 1, 0))
        self.pools = nn.ModuleList([nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2)])
        self.small = nn.AdaptiveAvgPool2d((1, 1))
        self.heads = nn.Sequential(nn.Dropout(), nn.Linear(5, 7), nn.ReLU6(), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, 2, 24]`` to ``[N, 3]``."""
        x = self.pools[0](self.act(self.first(x)))[..., -9:]
        x = self.pools[1](self.second(x))
        x = self.small(self.third(self.pad(x.unsqueeze(2))))
        found: Tensor = self.heads(x.reshape(x.size(0), -1))
        return found


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Everything: (3, 11, 9),
    Line: (2, 24),
    Pools: (2, 24),
    Unfused: (2, 6, 6),
}


def network(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """With random weights and statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def examples(kind: type[nn.Module], count: int = 16) -> Tensor:
    """``[count, ...]`` inputs."""
    draws = torch.Generator().manual_seed(1)
    return torch.randn(count, *SHAPES[kind], generator=draws)


def assigned(model: nn.Module, data: Tensor, mix: Sequence[str]) -> Assignment:
    """One precision after the other; layers that read one tensor have one.

    ``w[2,5,8]a6`` is of channels that take one width after the other.
    """
    network = Network.of(model, [data])
    texts, chosen, known = cycle(mix), dict[str, str](), dict[str, Precision]()
    for layer in network.layers:
        chosen[layer.name] = chosen.get(layer.input_of or "") or next(texts)
        digits = "".join(str(channel % 3) for channel in range(layer.num_channels))
        text = chosen[layer.name].replace("]", f"]:{digits}")
        known[layer.name] = Precision.parse(text)
    ranges = ActivationRanges.calibrate(network, Calibration.of([data]), known.values(), "minmax")
    layers = (
        AssignedLayer(
            x.name, x.kind, x.weight_shape, known[x.name],
            ranges.of(x.name, known[x.name].activation),
        )
        for x in network.layers
    )  # fmt: skip
    return Assignment(tuple(layers), network.ties, network.folded, "minmax")


@dataclass(frozen=True, eq=False)
class Made:
    """A network in integers, and in floating point with the same rounding."""

    rounded: Rounded
    program: Program

    @classmethod
    def of(cls, model: nn.Module, assignment: Assignment, data: Tensor) -> "Made":
        """What the target makes of a network before it writes it."""
        calibration = Calibration.of([data])
        shipped = replace(Shipped.of(model, assignment), calibration=calibration)
        rounded = rounded_of(shipped, next(iter(calibration)))
        rounded.calibrate(calibration, assignment.weight_range)
        return cls(rounded, integer_program(shipped, rounded))

    def codes(self, data: Tensor) -> Integers:
        """``[N, K]`` codes of inputs."""
        return input_codes(self.program, self.rounded, data)

    def outputs(self, data: Tensor) -> Integers:
        """``[N, P]`` of the integer simulation."""
        return run_integers(self.program, self.codes(data))

    def write(self, folder: Path, data: Tensor, outputs: Integers | None = None) -> None:
        """The folder's C, with examples and what they have to give."""
        expected = self.outputs(data) if outputs is None else outputs
        for name, text in texts(self.program, self.codes(data), np.asarray(expected)).items():
            (folder / name).write_text(text)
