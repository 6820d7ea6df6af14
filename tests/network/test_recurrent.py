"""Recurrent networks and cells opened into linear layers compute what torch's own do."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.opening import open_layers

N, T, F, H = 3, 6, 4, 5

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def assert_same(found: Any, expected: Any) -> None:
    """Nested outputs agree to 1e-5, packed ones in their order too."""
    if isinstance(expected, tuple):
        assert type(found) is type(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif expected is not None:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


NETWORKS: list[tuple[Any, dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.GRU, {}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


@st.composite
def networks(draw: st.DrawFn) -> nn.RNNBase:
    """Any recurrent network of torch's, small."""
    make, options = draw(st.sampled_from(NETWORKS))
    flags = {name: draw(st.booleans()) for name in ("bidirectional", "bias", "batch_first")}
    torch.manual_seed(0)
    dropout = draw(st.sampled_from([0.0, 0.5]))
    module: nn.RNNBase = make(F, H, draw(st.integers(2, 3)), dropout=dropout, **flags, **options)
    return module.eval()


def state_of(module: nn.RNNBase, *batch: int) -> Any:
    """A random initial state."""
    count = module.num_layers * (2 if module.bidirectional else 1)
    hidden = torch.randn(count, *batch, module.proj_size or H)
    return (hidden, torch.randn(count, *batch, H)) if module.mode == "LSTM" else hidden


@given(module=networks(), is_batched=st.booleans(), has_state=st.booleans())
def test_sequences(module: nn.RNNBase, is_batched: bool, has_state: bool) -> None:
    """Whatever the kind, the directions and the layout, with and without an initial state."""
    batched = (N, T, F) if module.batch_first else (T, N, F)
    x = torch.randn(batched if is_batched else (T, F))
    state = state_of(module, *((N,) if is_batched else ())) if has_state else None

    found = open_layers(share_parameters(module))

    with torch.no_grad():
        assert_same(found(x, state), module(x, state))


@given(
    module=networks(),
    lengths=st.lists(st.integers(1, T), min_size=N, max_size=N),
    is_sorted=st.booleans(),
    has_state=st.booleans(),
)
def test_packed_sequences(
    module: nn.RNNBase, lengths: list[int], is_sorted: bool, has_state: bool
) -> None:
    """Sequences of unlike lengths come back packed alike, each with its own last state."""
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    x = torch.randn(N, max(lengths), F)
    packed = pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=is_sorted)
    state = state_of(module, N) if has_state else None

    found = open_layers(share_parameters(module))

    with torch.no_grad():
        assert_same(found(packed, state), module(packed, state))
        assert isinstance(found(packed)[0], PackedSequence)


CELLS = [
    (nn.LSTMCell, {}),
    (nn.GRUCell, {}),
    (nn.RNNCell, {}),
    (nn.RNNCell, {"nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("make", "options"), CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(N,), ()], ids=["batched", "one"])
@pytest.mark.parametrize("has_state", [True, False])
def test_cells(make: Any, options: Any, bias: bool, shape: Any, has_state: bool) -> None:
    """One step, with and without a state and a batch axis."""
    module = make(F, H, bias=bias, **options).eval()
    hidden = torch.randn(*shape, H)
    state = (hidden, torch.randn(*shape, H)) if make is nn.LSTMCell else hidden

    found = open_layers(share_parameters(module))

    args = (torch.randn(*shape, F), state if has_state else None)
    with torch.no_grad():
        assert_same(found(*args), module(*args))


class Tagger(nn.Module):
    """Asks its recurrent network what it is, as many models do."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = recurrent
        self.head = nn.Linear(H * (2 if recurrent.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        weight: Any = self.rnn.weight_hh_l0
        assert self.rnn.hidden_size == weight.shape[1] == H
        assert len(self.rnn.all_weights) == self.rnn.num_layers * (1 + self.rnn.bidirectional)
        output, state = self.rnn(x.to(weight.dtype))
        hidden = state[0] if isinstance(self.rnn, nn.LSTM) else state
        y: Tensor = self.head(output.mean(dim=1) + 0 * hidden.sum())
        return y


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_of_a_network(make: Any) -> None:
    """Input projections are called once, recurrent ones in every step; products are counted."""
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[make]
    model = Tagger(make(F, H, batch_first=True, bidirectional=True)).eval()
    x = torch.randn(N, T, F)

    network = Network.of(model, [x])

    found = {layer.name: (layer.kind, layer.calls, layer.macs) for layer in network.layers}
    read, kept = ("linear", 1, T * F * gates * H), ("linear", T, T * H * gates * H)
    ends = ("l0", "l0_reverse")
    assert found == {
        **{f"rnn.ih_{end}": read for end in ends},
        **{f"rnn.hh_{end}": kept for end in ends},
        "head": ("linear", 1, 2 * H * 2),
    }
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x), atol=1e-5, rtol=0)


def test_everything_is_counted_once() -> None:
    """Weights of layers and the other numbers are all parameters that there are."""
    model = Tagger(nn.LSTM(F, H, 2, batch_first=True)).eval()

    network = Network.of(model, [torch.randn(N, T, F)])

    weights = sum(layer.num_weights for layer in network.layers)
    assert weights + network.num_unquantized == sum(p.numel() for p in model.parameters())


def test_both_directions_read_one_tensor() -> None:
    """So that one quantized copy of it serves both; the states are tensors of their own."""
    model = Tagger(nn.GRU(F, H, batch_first=True, bidirectional=True)).eval()

    network = Network.of(model, [torch.randn(N, T, F)])

    assert network.ties == (("rnn.ih_l0", "rnn.ih_l0_reverse"),)


def test_wrong_shapes_are_refused_in_torchs_words() -> None:
    """The opened network checks what the closed one checks."""
    found = open_layers(nn.LSTM(F, H).eval())

    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        found(torch.randn(T, N, F + 1))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        found(torch.randn(T, N, F), (torch.zeros(1, N, H + 1), torch.zeros(1, N, H)))
    with pytest.raises(ValueError, match="2 or 3 axes, got 4"):
        found(torch.randn(1, T, N, F))


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell])
def test_a_cell_refuses_wrong_axes(make: Any) -> None:
    """An input with a batch axis takes states with one."""
    found = open_layers(make(F, H).eval())

    with pytest.raises(ValueError, match="1 or 2 axes; got 3"):
        found(torch.randn(T, N, F))
