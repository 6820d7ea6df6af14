"""What holds for every module that is opened into layers."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import mpq
from mpq.errors import ModelError
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.opened import Opened
from mpq.network.opening import open_layers

N, T, E = 3, 5, 8
IDS = torch.tensor([[1, 2], [0, 3], [3, 3]])


def attention(**options: Any) -> nn.Module:
    """Self-attention whose input is every argument."""
    return nn.MultiheadAttention(E, 2, batch_first=True, **options)


def sequence() -> tuple[Tensor, ...]:
    """Random tokens."""
    return (torch.randn(N, T, E),)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "attention": (attention, lambda: sequence() * 3),
    "attention of three widths": (
        lambda: attention(kdim=6, vdim=4, add_bias_kv=True, bias=False),
        lambda: (torch.randn(N, T, E), torch.randn(N, T, 6), torch.randn(N, T, 4)),
    ),
    "lstm": (lambda: nn.LSTM(E, 4, 2, bidirectional=True, proj_size=3), sequence),
    "gru": (lambda: nn.GRU(E, 4, bias=False), sequence),
    "rnn": (lambda: nn.RNN(E, 4), sequence),
    "lstm cell": (lambda: nn.LSTMCell(E, 4), lambda: (torch.randn(N, E),)),
    "gru cell": (lambda: nn.GRUCell(E, 4, bias=False), lambda: (torch.randn(N, E),)),
    "bag": (lambda: nn.EmbeddingBag(4, 3), lambda: (IDS,)),
    "bilinear": (lambda: nn.Bilinear(3, 4, 2), lambda: (torch.randn(N, 3), torch.randn(N, 4))),
}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


@pytest.fixture(params=MODULES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A module and what it takes."""
    torch.manual_seed(0)
    make, args = MODULES[request.param]
    return make().eval(), args()


def first(output: Any) -> Tensor:
    """The first tensor of an output."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


Case = tuple[nn.Module, tuple[Tensor, ...]]


def test_the_original_stays_closed(case: Case) -> None:
    """Opening a copy that shares the parameters changes nothing in the module, nor a number."""
    module, args = case
    before, state, kind = module.state_dict(), torch.get_rng_state(), type(module)
    numbers = {name: tensor.clone() for name, tensor in before.items()}

    open_layers(share_parameters(module))(*args)

    assert type(module) is kind
    assert list(module.state_dict()) == list(before)
    assert all(torch.equal(before[name], numbers[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_memory_is_the_originals(case: Case) -> None:
    """No weight is copied, and none is forgotten."""
    module, _ = case

    found = open_layers(share_parameters(module))

    memory = {p.untyped_storage().data_ptr() for p in module.parameters()}
    assert {p.untyped_storage().data_ptr() for p in found.parameters()} == memory
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in module.parameters())
    assert not any(p.requires_grad for p in found.parameters())
    assert not any(part.training for part in found.modules())


def test_parameters_can_be_read_under_their_old_names(case: Case) -> None:
    """The user's forward pass may read them, and asks for the module's class."""
    module, _ = case

    found = open_layers(share_parameters(module))

    assert isinstance(found, Opened)
    assert isinstance(found, type(module))
    for name, parameter in module.named_parameters(recurse=False):
        assert torch.equal(getattr(found, name), parameter)


def test_state_dicts_go_both_ways(case: Case) -> None:
    """Names and shapes are the closed module's."""
    module, args = case
    found, twin = open_layers(share_parameters(module)), copy.deepcopy(module)
    for parameter in twin.parameters():
        parameter.data.normal_()

    other = open_layers(copy.deepcopy(module))
    other.load_state_dict(twin.state_dict())
    twin.load_state_dict(found.state_dict())

    with torch.no_grad():
        assert torch.equal(first(twin(*args)), first(module(*args)))
        assert not torch.equal(first(other(*args)), first(found(*args)))
    assert {n: t.shape for n, t in found.state_dict().items()} == {
        n: t.shape for n, t in module.state_dict().items()
    }


def test_a_state_dict_of_another_shape_is_refused_by_torch(case: Case) -> None:
    """Missing and unexpected names are called as ever."""
    module, _ = case
    state = {name: tensor[:1] for name, tensor in module.state_dict().items()}

    with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict"):
        open_layers(module).load_state_dict(state)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles(case: Case, again: Callable[..., nn.Module]) -> None:
    """The class is made at run time, and found again."""
    module, args = case
    found = open_layers(module)

    twin = again(found)

    assert type(twin) is type(found)
    with torch.no_grad():
        assert torch.equal(first(twin(*args)), first(found(*args)))


def test_another_dtype(case: Case) -> None:
    """The opened module is moved and cast as any other."""
    module, args = case
    found = open_layers(module).double()

    wide = [x.double() if x.is_floating_point() else x for x in args]

    assert first(found(*wide)).dtype == torch.float64


def test_opening_twice_is_opening_once(case: Case) -> None:
    """What has been opened is left as it is."""
    found = open_layers(case[0])
    kind, names = type(found), [name for name, _ in found.named_modules()]

    again = open_layers(found)

    assert type(again) is kind
    assert [name for name, _ in again.named_modules()] == names


def test_setting_a_parameter_is_refused(case: Case) -> None:
    """A weight that a forward pass sets would not be computed with."""
    module, _ = case
    names = [name for name, _ in module.named_parameters(recurse=False) if "bias_" not in name]
    kind = type(module).__name__
    found = open_layers(module)

    with pytest.raises(ModelError, match=f"sets '{names[0]}' of an {kind} that"):
        setattr(found, names[0], torch.zeros(1))


class Scaled(nn.LSTM):
    """A subclass with members of its own, that computes what its class computes."""

    def __init__(self) -> None:
        super().__init__(E, 4)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def scaled(self, x: Tensor) -> Tensor:
        """Called from outside."""
        y: Tensor = self(x)[0] * self.scale
        return y


class Attention(nn.MultiheadAttention):
    """A subclass that changes nothing."""


class Reading(nn.GRU):
    """A subclass that computes something else, with a weight that it reads itself."""

    def forward(self, x: Any, hx: Any = None) -> Any:
        output, state = super().forward(x, hx)
        weight: Any = self.weight_hh_l0
        return output * weight.sum(), state


def test_subclasses_that_compute_the_same_are_opened() -> None:
    """With their own attributes and methods."""
    module, x = Scaled().eval(), torch.randn(N, T, E)

    found = open_layers(share_parameters(module))

    assert isinstance(found, Scaled)
    torch.testing.assert_close(found.scaled(x), module.scaled(x))
    assert isinstance(open_layers(Attention(E, 2)), Opened)


def test_subclasses_that_compute_something_else_stay_closed() -> None:
    """Neither one whose own forward reads weights, nor an object whose forward was replaced."""
    replaced = nn.LSTM(E, 4)
    replaced.forward = lambda x: x  # type: ignore

    assert type(open_layers(Reading(E, 4))) is Reading
    assert type(open_layers(replaced)) is nn.LSTM


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.LSTM(E, 4), "weight_hh_l0"),
        (lambda: nn.GRUCell(E, 4), "weight_hh"),
        (lambda: nn.MultiheadAttention(E, 2), "in_proj_weight"),
        (lambda: nn.Bilinear(3, 4, 2), "weight"),
        (lambda: nn.EmbeddingBag(4, 3), "weight"),
    ],
)
def test_computed_weights_stay_closed(make: Callable[[], nn.Module], name: str) -> None:
    """A weight that is made of others belongs to no layer."""
    module = parametrizations.weight_norm(make(), name)

    assert not isinstance(open_layers(module), Opened)


def test_hooks_stay() -> None:
    """A hook of the user's on a closed module is called on the opened one."""
    module, calls = nn.LSTM(E, 4).eval(), list[int]()
    module.register_forward_hook(lambda *_: calls.append(1))

    open_layers(share_parameters(module))(torch.randn(T, N, E))

    assert calls == [1]


class Shared(nn.Module):
    """Two attentions of one input projection, two cells of one recurrent weight, a list outside."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = attention(), attention()
        self.b.in_proj_weight = self.a.in_proj_weight
        self.c, self.d = nn.GRUCell(E, E), nn.GRUCell(E, E)
        self.d.weight_hh = self.c.weight_hh
        self.unregistered = [self.c, self.d]

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.a, self.b):
            x = block(x, x, x)[0]
        state = x[:, 0]
        for cell in self.unregistered:
            state = cell(x[:, 1], state)
        return state


def test_shared_parameters_stay_shared() -> None:
    """One parameter of two modules is one weight of two layers; other references are opened too."""
    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(N, T, E)

    network = Network.of(model, [x])

    owners = {layer.name: layer.weight_of for layer in network.layers if layer.weight_of}
    assert owners == {**{f"b.{n}_proj": f"a.{n}_proj" for n in "qkv"}, "d.hh": "c.hh"}
    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x))


class Net(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(4, E)
        self.rnn = nn.LSTM(E, E, batch_first=True, bidirectional=True)
        self.join = nn.Bilinear(E, 2 * E, E)
        self.cell = nn.GRUCell(E, E)
        self.mix = attention(add_bias_kv=True, add_zero_attn=True)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.bag(ids).unsqueeze(1).expand(-1, T, -1)
        tokens = self.join(rows, self.rnn(rows)[0])
        tokens = self.mix(tokens, tokens, tokens)[0]
        y: Tensor = self.cell(tokens[:, 0], tokens[:, 1])
        return y


def test_a_quantized_network_loads_into_the_original() -> None:
    """``mpq quantize`` writes its state dict: the user's own class reads it."""
    torch.manual_seed(0)
    model = Net().eval()
    result = mpq.search(
        mpq.Task(model, [IDS], candidates=["w4", "w8"]), {"weight_bytes": "0.8x:w8"}
    )
    quantized = mpq.quantize(model, result.assignment)

    twin = Net().eval()
    twin.load_state_dict(quantized.state_dict())

    with torch.no_grad():
        torch.testing.assert_close(twin(IDS), quantized(IDS), atol=1e-5, rtol=0)
        assert not torch.allclose(twin(IDS), model(IDS), atol=1e-5)
    assert len(result.assignment.layers) == 12


class OneInput(nn.MultiheadAttention):
    """A forward of its own around torch's."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Attention of the tokens to themselves, and the tokens."""
        assert self.embed_dim == x.shape[-1]
        return x + 2 * super().forward(x, x, x, need_weights=False)[0]


class Outputs(nn.LSTM):
    """Without the states."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The outputs alone."""
        self.flatten_parameters()
        found: Tensor = super().forward(x)[0]
        return found


class Twice(Outputs):
    """A subclass of a subclass."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Twice as much."""
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: OneInput(E, 2, batch_first=True),
        lambda: Outputs(E, 4, bidirectional=True, batch_first=True),
        lambda: Twice(E, E, batch_first=True),
    ],
    ids=["attention", "lstm", "twice"],
)
def test_a_forward_that_calls_torchs_is_kept_around_the_layers(
    make: Callable[[], nn.Module],
) -> None:
    """All weights are layers, outputs and state dict as before, also in a quantized copy."""
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(N, T, E)

    network = Network.of(model, [x])
    result = mpq.search(
        mpq.Task(model, [x, x], candidates=("w4a8d", "w8a8d")), {"weight_bytes": "0.8x:w8a8d"}
    )
    quantized = copy.deepcopy(mpq.quantize(model, result.assignment))

    assert network.coverage is not None
    assert network.coverage.weights_outside == ()
    assert isinstance(network.module, Opened)
    assert torch.allclose(network.module(x), model(x), atol=1e-6)
    assert set(quantized.state_dict()) == set(model.state_dict())
    assert torch.allclose(quantized(x), model(x), atol=0.5)
    assert not torch.equal(quantized(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(network.module))(x), network.module(x))
