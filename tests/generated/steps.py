"""Steps of generated networks: each maps ``[N, 4, 6]`` to the same shape, deterministically.

One of every kind of layer, of use of a weight and of operation that networks bring.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from tests.generated.parts import (
    TOKENS,
    WIDTH,
    Computing,
    Counting,
    Equalised,
    Experts,
    Free,
    Listed,
    Looped,
    Named,
    Odd,
    Operation,
    Padded,
    Pair,
    Positions,
    Scaled,
    SelfAttention,
    Standardised,
    Tokens,
)


def _channels(inner: nn.Module) -> nn.Module:
    """A convolution over the tokens."""
    return Tokens(inner, lambda m, x: m(x.transpose(1, 2)).transpose(1, 2))


def _image(inner: nn.Module) -> nn.Module:
    """A convolution over 2x2 pixels."""

    def run(layer: Any, x: Tensor) -> Tensor:
        y: Tensor = layer(x.transpose(1, 2).unflatten(2, (2, 2)))
        return F.adaptive_avg_pool2d(y, 2).flatten(2).transpose(1, 2)

    return Tokens(inner, run)


def _volume(inner: nn.Module) -> nn.Module:
    def run(layer: Any, x: Tensor) -> Tensor:
        y: Tensor = layer(x.transpose(1, 2).unflatten(2, (1, 2, 2)))
        return F.adaptive_avg_pool3d(y, (1, 2, 2)).flatten(2).transpose(1, 2)

    return Tokens(inner, run)


def _sized() -> nn.Module:
    layer = nn.ConvTranspose1d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def run(layer: Any, x: Tensor) -> Tensor:
        y: Tensor = layer(x.transpose(1, 2), output_size=[2 * TOKENS])
        return F.avg_pool1d(y, 2).transpose(1, 2)

    return Tokens(layer, run)


def _ids(x: Tensor) -> Tensor:
    return x.detach().argmax(-1)


def _looked_up(inner: nn.Module) -> nn.Module:
    """A table that is asked for the largest channel of every token."""
    return Tokens(inner, lambda m, x: x + m(_ids(x)))


def _bagged(inner: nn.Module, is_weighted: bool = False) -> nn.Module:
    def run(bag: Any, x: Tensor) -> Tensor:
        weights = torch.full_like(x[..., 0], 0.5) if is_weighted else None
        found: Tensor = bag(_ids(x), per_sample_weights=weights)
        return x + found[:, None]

    return Tokens(inner, run)


def _offsets() -> nn.Module:
    def run(bag: Any, x: Tensor) -> Tensor:
        ids = _ids(x).flatten()
        found: Tensor = bag(ids, torch.arange(0, len(ids), 2, device=ids.device))
        return x + found.reshape(len(x), 2, WIDTH).repeat_interleave(2, 1)

    return Tokens(nn.EmbeddingBag(WIDTH, WIDTH, mode="mean"), run)


def _recurrent(inner: nn.Module) -> nn.Module:
    return Tokens(inner, lambda m, x: m(x)[0])


def _late(inner: nn.Module) -> nn.Module:
    """Sequence first."""
    return Tokens(inner, lambda m, x: m(x.transpose(0, 1))[0].transpose(0, 1))


def _attending(inner: nn.Module) -> nn.Module:
    return Tokens(inner, lambda m, x: m(x, x, x)[0])


def _pruned() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


def _tied() -> nn.Module:
    first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    second.weight = first.weight
    return Pair(first, second, lambda a, b, x: b(a(x).tanh()))


def _tied_table() -> nn.Module:
    table, head = nn.Embedding(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
    head.weight = table.weight
    return Pair(table, head, lambda a, b, x: b(a(_ids(x)) + x))


def _two_layouts() -> nn.Module:
    first = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
    second = nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)
    second.weight = first.weight
    return Pair(first, second, lambda a, b, x: b(a(x.transpose(1, 2)).tanh()).transpose(1, 2))


def _transposed() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    layer.weight = nn.Parameter(layer.weight.detach().t())
    return layer


def _plain(bias: bool = True) -> nn.Module:
    return nn.Linear(WIDTH, WIDTH, bias)


def _conv(**options: Any) -> nn.Module:
    return nn.Conv1d(WIDTH, WIDTH, 3, **{"padding": 1, **options})


def _folded() -> nn.Module:
    norm = nn.BatchNorm2d(WIDTH)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    norm.running_var.uniform_(0.5, 2)
    norm.running_mean.normal_()
    return _image(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), norm, nn.ReLU(True)))


LAYERS: Final[dict[str, Callable[[], nn.Module]]] = {
    "linear": _plain,
    "linear without bias": lambda: _plain(False),
    "transposed memory": _transposed,
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(True), nn.Linear(8, WIDTH)),
    "conv1d": lambda: _channels(_conv()),
    "conv1d reflect": lambda: _channels(_conv(padding_mode="reflect")),
    "conv1d circular": lambda: _channels(_conv(padding_mode="circular", groups=2)),
    "conv1d replicate": lambda: _channels(_conv(padding_mode="replicate", dilation=1)),
    "conv1d same": lambda: _channels(_conv(padding="same", dilation=2)),
    "depthwise": lambda: _channels(_conv(groups=WIDTH)),
    "conv2d": lambda: _image(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=3, bias=False)),
    "conv2d valid": lambda: _image(nn.Conv2d(WIDTH, WIDTH, (1, 2), padding="valid")),
    "conv3d": lambda: _volume(nn.Conv3d(WIDTH, WIDTH, (1, 3, 3), padding=(0, 1, 1))),
    "transposed conv1d": _sized,
    "transposed conv2d": lambda: _image(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2, groups=2)),
    "transposed conv3d": lambda: _volume(nn.ConvTranspose3d(WIDTH, WIDTH, (1, 2, 2), dilation=1)),
    "embedding": lambda: _looked_up(nn.Embedding(WIDTH, WIDTH)),
    "embedding padding": lambda: _looked_up(nn.Embedding(WIDTH, WIDTH, padding_idx=1)),
    "embedding max_norm": lambda: _looked_up(nn.Embedding(WIDTH, WIDTH, max_norm=1.0)),
    "positions": lambda: Tokens(Positions(TOKENS, WIDTH), lambda m, x: x + m(x.shape)),
    "bag sum": lambda: _bagged(nn.EmbeddingBag(WIDTH, WIDTH, mode="sum"), True),
    "bag max": lambda: _bagged(nn.EmbeddingBag(WIDTH, WIDTH, mode="max")),
    "bag padding": lambda: _bagged(nn.EmbeddingBag(WIDTH, WIDTH, padding_idx=2)),
    "bag max_norm": lambda: _bagged(nn.EmbeddingBag(WIDTH, WIDTH, max_norm=1.0)),
    "bag offsets": _offsets,
    "bilinear": lambda: Tokens(nn.Bilinear(WIDTH, WIDTH, WIDTH), lambda m, x: m(x, x.tanh())),
    "lstm": lambda: _recurrent(nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "lstm proj": lambda: _recurrent(nn.LSTM(WIDTH, 8, proj_size=WIDTH, batch_first=True)),
    "gru": lambda: _late(nn.GRU(WIDTH, 3, num_layers=2, bidirectional=True)),
    "rnn": lambda: _recurrent(nn.RNN(WIDTH, WIDTH, bias=False, batch_first=True)),
    "lstm cell": lambda: Looped(nn.LSTMCell(WIDTH, WIDTH)),
    "gru cell": lambda: Looped(nn.GRUCell(WIDTH, WIDTH)),
    "rnn cell": lambda: Looped(nn.RNNCell(WIDTH, WIDTH)),
    "attention": lambda: _attending(nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "attention late": lambda: _late(
        SelfAttention(nn.MultiheadAttention(WIDTH, 3, kdim=WIDTH, vdim=WIDTH))
    ),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True),
    "scaled": lambda: Scaled(WIDTH, WIDTH),
    "equalised": lambda: Equalised(WIDTH, WIDTH),
    "standardised": lambda: _channels(Standardised(WIDTH, WIDTH, 3)),
    "padded": lambda: _channels(Padded(WIDTH, WIDTH, 3)),
    "F.linear": lambda: Free((WIDTH, WIDTH), F.linear),
    "F.conv1d": lambda: _channels(
        Free((WIDTH, 2, 3), lambda x, w: F.conv1d(x, w, None, 1, 1, 1, 3))
    ),
    "F.conv2d": lambda: _image(Free((WIDTH, WIDTH, 3, 3), lambda x, w: F.conv2d(x, w, padding=1))),
    "F.embedding": lambda: Free((WIDTH, WIDTH), lambda x, w: x + F.embedding(_ids(x), w)),
    "matmul": lambda: Free((WIDTH, WIDTH), torch.matmul),
    "matmul transposed": lambda: Free((WIDTH, WIDTH), lambda x, w: x @ w.t()),
    "matmul left": lambda: Free((TOKENS, TOKENS), lambda x, w: w @ x),
    "einsum": lambda: Free(
        (2, 3, WIDTH), lambda x, w: torch.einsum("ntw,hdw->nthd", x, w).flatten(2)
    ),
    "addmm": lambda: Free(
        (WIDTH, WIDTH), lambda x, w: torch.addmm(w[0], x.flatten(0, 1), w).reshape(x.shape)
    ),
    "computed": lambda: Free((WIDTH, WIDTH), lambda x, w: x @ w.abs()),
    "computed of a mask": lambda: Computing(
        lambda m, x: F.linear(x, m.kernel * m.mask + m.others[0] @ m.others[1])
    ),
    "computed, stacked": lambda: Computing(
        lambda m, x: torch.einsum("ntw,ewv->ntev", x, torch.stack(list(m.others))).sum(2)
    ),
    "computed, read besides": lambda: Computing(
        lambda m, x: F.linear(x, m.kernel + m.others[0]) + m.others[0].mean()
    ),
    "listed": Listed,
    "experts": lambda: Experts(False),
    "experts looped": lambda: Experts(True),
    "weight_norm": lambda: parametrizations.weight_norm(_plain()),
    "weight_norm hook": lambda: _channels(weight_norm(_conv())),
    "spectral_norm": lambda: parametrizations.spectral_norm(_plain()),
    "spectral_norm hook": lambda: spectral_norm(_plain()),
    "pruned": _pruned,
    "orthogonal": lambda: parametrizations.orthogonal(_plain()),
    "lstm weight_norm": lambda: _recurrent(
        parametrizations.weight_norm(nn.LSTM(WIDTH, WIDTH, batch_first=True), "weight_hh_l0")
    ),
    "attention spectral_norm": lambda: _attending(
        parametrizations.spectral_norm(
            nn.MultiheadAttention(WIDTH, 2, batch_first=True), "in_proj_weight"
        )
    ),
    "bilinear weight_norm": lambda: Tokens(
        parametrizations.weight_norm(nn.Bilinear(WIDTH, WIDTH, WIDTH)), lambda m, x: m(x, x.tanh())
    ),
    "free weight_norm": lambda: parametrizations.weight_norm(
        Free((WIDTH, WIDTH), torch.matmul), "kernel"
    ),
    "tied": _tied,
    "tied table": _tied_table,
    "two layouts": _two_layouts,
    "reused": lambda: Tokens(_plain(), lambda m, x: m(m(x).tanh())),
    "residual": lambda: Tokens(_plain(), lambda m, x: x + m(x).relu_()),
    "folded": _folded,
    "counting": Counting,
    "odd": Odd,
    "keyword": Named,
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), _plain()),
}  # fmt: skip
"""What has weights."""
OPERATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "batch norm": lambda: _channels(nn.BatchNorm1d(WIDTH)),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "group norm": lambda: _channels(nn.GroupNorm(2, WIDTH)),
    "gelu": nn.GELU,
    "round": lambda: Operation(lambda x: torch.round(x * 4) / 4),
    "detach": lambda: Operation(lambda x: x.detach().tanh()),
    "sign": lambda: Operation(lambda x: torch.sign(x) * 0.5 + 0.1 * x),
    "mixing": lambda: Operation(lambda x: x + 0.5 * x.mean(0, keepdim=True)),
    "in place": lambda: Operation(lambda x: x.mul(1.0).add_(0.1)),
    "double": lambda: Operation(lambda x: (x.double() * 2).to(x.dtype)),
}
"""What has none that could be quantized."""
