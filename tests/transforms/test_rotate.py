"""Spaces that can be rotated: found from the graph, and the network stays the same."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.examples import Calibration
from mpq.network.modules import share_parameters
from mpq.network.reparametrization import Rotation
from mpq.network.reparametrized import reparametrized
from mpq.quantization.precision import Precision
from mpq.transforms import Found, Rotate, Transforming
from mpq.transforms.learned_rotation import _tangent, _turned
from mpq.transforms.orthogonal import random_orthogonal
from mpq.transforms.rotations import Turns
from tests.transforms.networks import Block, Shortcut, Words, jittered, planes


def turns_of(net: nn.Module, x: Tensor) -> Turns:
    """Of a network whose parameters have the names that the user gave them."""
    return Turns.of(share_parameters(net), Calibration.of([x]).first())


def found(net: nn.Module, x: Tensor, **options: bool | int) -> Found:
    """What the transformation makes of it."""
    on = Transforming(share_parameters(net), Calibration.of([x]), Precision.parse("w4a4"))
    return Rotate(**options).found(on)  # type: ignore[arg-type]


def apart(net: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of outputs, relative to the largest output."""
    with torch.no_grad():
        # In float64, so that what is found is no rounding.
        read = x.double() if x.is_floating_point() else x
        before, after = (copy.deepcopy(m).double()(read) for m in (net, other))
    return float((before - after).abs().max() / before.abs().max())


def rotated(changes: Found) -> set[str]:
    """Names of parameters that are rotated."""
    return {change.parameter for change in changes.changes if isinstance(change, Rotation)}


@given(net=planes(), seed=st.integers(0, 9))
def test_random_convolutional_networks_stay_the_same(net: nn.Module, seed: int) -> None:
    """Layers behind each other, around shortcuts, called twice: whatever is rotated is exact."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))

    other = reparametrized(net, found(net, x).changes)

    assert apart(net, other, x) < 1e-5


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("learned", [False, True])
def test_language_models_stay_the_same(is_tied: bool, norm: type[nn.Module], learned: bool) -> None:
    """The residual stream with all that reads it, and the values of each head."""
    net, ids = jittered(Words(is_tied, norm)), torch.randint(13, (40, 7))

    changes = found(net, ids, untie=True, learned=learned, steps=2)

    assert apart(net, reparametrized(net, changes.changes), ids) < 1e-5
    assert changes.num_sites == 3
    assert set(changes.why_not) == {"blocks.0.gated.down.weight", "blocks.1.gated.down.weight"}
    assert "reads what mul gives" in changes.why_not["blocks.0.gated.down.weight"]


def test_a_stream_and_its_heads_are_the_spaces() -> None:
    """16 channels with all their writers and readers; of each attention two heads of 8 values."""
    turns = turns_of(jittered(Words(is_tied=False)), torch.randint(13, (2, 7))).turns

    assert [turn.size for turn in turns] == [16, 8, 8]
    stream, values = turns[:2]
    names = {run.parameter.removeprefix("blocks.0.") for run in stream.runs}
    assert names >= {"words.weight", "attention.qkv.weight", "attention.out.weight"}
    assert names >= {"attention.out.bias", "gated.gate.weight", "gated.down.bias", "head.weight"}
    value = {run.parameter: (run.axis, run.start, run.count) for run in values.runs}
    assert value["blocks.0.attention.qkv.weight"] == (0, 32, 2)
    assert value["blocks.0.attention.qkv.bias"] == (0, 32, 2)
    assert value["blocks.0.attention.out.weight"] == (1, 0, 2)


def test_a_tied_head_is_refused_unless_it_is_untied() -> None:
    """The last norm's weight would have to be in the embedding, too; the reason has the bytes."""
    net, ids = jittered(Words(is_tied=True)), torch.randint(13, (2, 7))

    tied, untied = found(net, ids), found(net, ids, untie=True)

    assert "words.weight" not in rotated(tied)
    assert f"({13 * 16 * 4} bytes more" in tied.why_not["blocks.0.gated.up.weight"]
    assert rotated(untied) >= {"words.weight", "head.weight"}


def test_a_tied_head_is_rotated_behind_a_norm_without_a_weight() -> None:
    """Both sides by the same matrix; nothing has to be untied."""
    net, ids = Words(is_tied=True).eval(), torch.randint(13, (2, 7))
    net.norm = nn.RMSNorm(16, elementwise_affine=False)

    changes = found(net, ids)

    assert "words.weight" in rotated(changes)
    assert apart(net, reparametrized(net, changes.changes), ids) < 1e-5


class Tokens(nn.Module):
    """A vision transformer: patches by a convolution, a class token, positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token, self.places = (nn.Parameter(torch.randn(1, n, 16)) for n in (1, 5))
        self.block, self.norm = Block(16, nn.LayerNorm), nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.places
        found: Tensor = self.head(self.norm(self.block(tokens))[:, 0])
        return found


def test_parameters_beside_layers_turn_with_the_stream() -> None:
    """A class token and positions; LayerNorm subtracts the same mean as before."""
    net, x = jittered(Tokens()), torch.randn(2, 3, 8, 8)

    changes = found(net, x)

    assert rotated(changes) >= {"patches.weight", "patches.bias", "token", "places", "head.weight"}
    assert apart(net, reparametrized(net, changes.changes), x) < 1e-5


class Grouped(nn.Module):
    """Four query heads share two heads of keys and values, as a repeat or inside of attention."""

    def __init__(self, is_repeated: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.out, self.is_repeated = nn.Linear(16, 16), is_repeated

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (m(x).view(n, t, -1, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        if self.is_repeated:
            k, v = (y[:, :, None].expand(n, 2, 2, t, 4).reshape(n, 4, t, 4) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=not self.is_repeated)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        return found


@pytest.mark.parametrize("is_repeated", [False, True])
def test_query_heads_share_the_rotation_of_their_values(is_repeated: bool) -> None:
    """Two blocks where values are made, four where they are read."""
    net, x = jittered(Grouped(is_repeated)), torch.randn(2, 5, 16)

    (turn,) = turns_of(net, x).turns

    counts = {run.parameter: run.count for run in turn.runs}
    assert (turn.size, counts) == (4, {"v.weight": 2, "v.bias": 2, "out.weight": 4})
    assert apart(net, reparametrized(net, found(net, x).changes), x) < 1e-5


class Scaled(nn.Module):
    """A shortcut around a branch that has a factor for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch = nn.Linear(4, 8), nn.Linear(8, 8)
        self.scale, self.last = nn.Parameter(torch.rand(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.last(x + self.scale * self.branch(x))
        return found


class Flipped(Scaled):
    """A shortcut whose channels lie in another order."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        found: Tensor = self.last(self.scale * 0 + x + self.branch(x).flip(-1))
        return found


class Root(nn.Module):
    """RMSNorm written out, with a weight of some shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(*shape))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
        return found


def test_a_normalization_may_be_written_out() -> None:
    """A mean of squares is that of any rotation."""
    net, x = jittered(nn.Sequential(nn.Linear(4, 8), Root(8), nn.Linear(8, 3))), torch.randn(2, 4)

    changes = found(net, x)

    assert rotated(changes) == {"0.weight", "0.bias", "2.weight"}
    assert apart(net, reparametrized(net, changes.changes), x) < 1e-5


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)), "reads what gelu gives"),
        (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), Shortcut(nn.Linear(8, 8)),
                       nn.Linear(8, 3)), "is added to what is not rotated with it"),
        (nn.Sequential(nn.Linear(4, 8), Root(1, 8), nn.Linear(8, 3)), "a product with 1.weight"),
        (Scaled(), "is added to what is not rotated with it"),
        (Flipped(), "reads what a sum (a shortcut) gives"),
        (nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (8, 1)), nn.Conv1d(8, 8, 1, groups=2),
                       nn.Flatten(), nn.Linear(8, 3)), "a convolution of groups"),
    ],
    ids=["gelu", "post-norm", "matrix", "layer scale", "order", "groups"],
)  # fmt: skip
def test_what_lets_no_rotation_through_is_told(net: nn.Module, why: str) -> None:
    """The reader's inputs stay as they are, and the reason is what stands between."""
    turns = turns_of(jittered(net), torch.randn(2, 4))

    reasons = [reason for name, reason in turns.why_not.items() if why in reason]
    assert reasons, turns.why_not


def test_a_weight_of_zero_cannot_be_folded_back() -> None:
    """Of a norm: the file of a transformation holds no factor of 0."""
    net = nn.Sequential(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        net.get_parameter("1.weight")[2] = 0

    turns = turns_of(net, torch.randn(2, 4))

    assert not turns.turns
    assert "has a weight of 0" in turns.why_not["2.weight"]


def test_cayley_steps_find_the_nearest_rotation() -> None:
    """Of one set of points to another: the closed form is a singular value decomposition."""
    draws = np.random.default_rng(0)
    points, wanted = draws.standard_normal((50, 5)), random_orthogonal(5, draws)
    wanted *= np.sign(np.linalg.det(wanted))  # steps do not mirror; 5 is odd
    x, y = torch.from_numpy(points), torch.from_numpy(points @ wanted)
    matrix = torch.eye(5, dtype=torch.double)

    for step in range(300):
        gradient = 2 * x.T @ (x @ matrix - y)
        matrix = _turned(matrix, _tangent(gradient, matrix), 0.1 * (1 - step / 300))

    torch.testing.assert_close(matrix, torch.from_numpy(wanted), atol=1e-2, rtol=0)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(5, dtype=torch.double))
