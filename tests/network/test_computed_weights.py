"""weight_norm, spectral_norm, pruning, parametrize: the computed weight is what is quantized."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from mpq.backends.simulate import Simulate
from mpq.errors import ModelError
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def old(name: str) -> Callable[[nn.Module], Any]:
    """The deprecated function, without its warning."""

    def change(layer: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(nn.utils, name)(layer)
        # In training mode, as spectral_norm iterates there, and its first vectors are random.
        layer(torch.randn(2, *layer.example))

    return change


class Symmetric(nn.Module):
    """The upper triangle, twice."""

    def forward(self, x: Tensor) -> Tensor:
        """Its own transpose."""
        return x.triu() + x.triu(1).mT


class Noisy(nn.Module):
    """Another weight every time."""

    def forward(self, x: Tensor) -> Tensor:
        """With noise."""
        return x + torch.randn_like(x)


def pruned_twice(layer: nn.Module) -> None:
    """Two masks on one weight."""
    prune.l1_unstructured(layer, "weight", amount=0.3)
    prune.random_unstructured(layer, "weight", amount=0.2)


def pruned_and_normed(layer: nn.Module) -> None:
    """weight_norm whose direction is pruned: a weight computed from a computed tensor."""
    old("weight_norm")(layer)
    prune.l1_unstructured(layer, "weight_v", amount=0.3)
    # A mask runs before the forward, so after a weight_norm that was registered earlier.
    hooks: Any = layer._forward_pre_hooks
    hooks.move_to_end(next(iter(hooks)))


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "symmetric": lambda x: parametrize.register_parametrization(x, "weight", Symmetric()),
    "old weight_norm": old("weight_norm"),
    "old spectral_norm": old("spectral_norm"),
    "pruned": lambda x: prune.l1_unstructured(x, "weight", amount=0.5),
    "pruned twice": pruned_twice,
    "pruned and normed": pruned_and_normed,
    "pruned bias": lambda x: prune.l1_unstructured(x, "bias", amount=0.5),
    "both": lambda x: parametrizations.spectral_norm(parametrizations.weight_norm(x)),
}
MAKES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 4), (4,)),
    "conv1d": (lambda: nn.Conv1d(4, 4, 4), (4, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 2), (4, 5, 5)),
}


def changed(change: str, made: str) -> tuple[nn.Module, Tensor]:
    """A network with one layer whose weight is computed, and examples."""
    make, shape = MAKES[made]
    layer: Any = make()
    layer.example = shape
    CHANGES[change](layer)
    model, x = (
        nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
        torch.randn(5, *shape),
    )
    # Initializes the lazy layer.
    model.eval()(x)
    return model, x


def state(model: nn.Module) -> dict[str, Tensor]:
    """All numbers of a model."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize("change", CHANGES)
def test_the_computed_weight_is_the_layers_weight(change: str, made: str) -> None:
    """The layer has the weight that its forward reads, as a plain parameter, and nothing else."""
    if change == "symmetric" and made != "linear":
        pytest.skip("only a square matrix is symmetric")
    model, x = changed(change, made)
    with torch.no_grad():
        expected_output = model(x)
    layer: Any = model.get_submodule("0")
    expected, before = layer.weight.detach().clone(), state(model)

    network = Network.of(model, [x])

    own = network.layer_module("0")
    assert [name for name, _ in own.named_parameters()] in (["weight", "bias"], ["bias", "weight"])
    assert list(own.named_buffers()) == []
    assert not own._forward_pre_hooks
    assert torch.equal(network.weight("0"), expected)
    assert torch.equal(network.module(x), expected_output)
    assert [layer.name for layer in network.layers] == ["0", "3"]
    # Counted as of the evaluated weights: both biases are all that is left.
    biases = sum(b.numel() for n, b in network.module.named_parameters() if n.endswith("bias"))
    assert network.num_unquantized == biases
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with torch.no_grad():
        assert torch.equal(model(x), expected_output)


@pytest.mark.parametrize("change", CHANGES)
def test_a_quantized_network_holds_the_plain_rounded_weight(change: str) -> None:
    """``quantize`` gives what it gives for the network whose weight was never computed."""
    model, x = changed(change, "linear")
    bare: Any = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        for name in ("0", "3"):
            for what in ("weight", "bias"):
                value = getattr(model.get_submodule(name), what)
                getattr(bare.get_submodule(name), what).copy_(value)
    assigned = tuple(
        AssignedLayer(layer.name, layer.kind, layer.weight_shape, Precision.parse("w3"))
        for layer in Network.of(model, [x]).layers
    )

    found = Simulate().quantize(model, Assignment(assigned))

    expected = Simulate().quantize(bare, Assignment(assigned)).state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.items())
    # A file of the quantized network is loaded into it again.
    found.load_state_dict(expected)


def test_a_weight_that_is_another_one_each_time_is_refused() -> None:
    """The network gives another answer each time, whatever is left out."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval(), torch.randn(5, 4)
    parametrize.register_parametrization(model.get_submodule("0"), "weight", Noisy())
    model.eval()

    for exclude in ([], ["0"]):
        with pytest.raises(ModelError, match="the same input gives another answer"):
            Network.of(model, [x], exclude=exclude)


def test_an_original_that_two_modules_share_stays_the_others() -> None:
    """A parametrized layer and a plain one on one parameter: the plain one keeps its numbers."""
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    parametrize.register_parametrization(a, "weight", Symmetric())
    model, x = nn.Sequential(a, b).eval(), torch.randn(5, 4)

    network = Network.of(model, [x])

    assert torch.equal(network.weight("1"), b.weight)
    assert torch.equal(network.weight("0"), a.weight)
    assert network.ties == ()


def test_a_shared_module_is_evaluated_once() -> None:
    """One layer under two names stays one."""
    shared = parametrizations.weight_norm(nn.Linear(4, 4))
    model, x = nn.Sequential(shared, nn.ReLU(), shared).eval(), torch.randn(5, 4)

    network = Network.of(model, [x])

    assert [(layer.name, layer.aliases, layer.calls) for layer in network.layers] == [
        ("0", ("2",), 2)
    ]


def test_a_recurrent_network_keeps_its_list_of_weights() -> None:
    """A recurrent module reads its weights from a list of its own, also in the copy."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 5, batch_first=True)
            old_norm: Any = nn.utils.weight_norm
            with pytest.warns(FutureWarning):
                old_norm(self.rnn, "weight_hh_l0")
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.rnn(x)[0][:, -1])
            return found

    model, x = Recurrent().eval(), torch.randn(6, 3, 4)
    with torch.no_grad():
        expected = model(x)

    network = Network.of(model, [x])

    assert torch.allclose(network.module(x), expected, atol=1e-6)


def test_a_model_that_keeps_its_last_outputs_is_copied() -> None:
    """``deepcopy`` refuses results of computations, wherever a module keeps them."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.last: dict[str, list[Tensor]] = {}

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            self.last = {"outputs": [y]}
            return y

    model, x = Keeps().eval(), torch.randn(5, 4)
    model(x)
    kept = model.last["outputs"][0]

    network = Network.of(model, [x])

    assert len(network.layers) == 1
    assert model.last["outputs"][0] is kept
    assert kept.requires_grad


def test_hugging_face_wav2vec2_is_searched_whole() -> None:
    """Its positional convolution is weight-normalized, which refused the network before."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, num_labels=3,
    )  # fmt: skip
    model, x = Wav2Vec2ForSequenceClassification(config).eval(), torch.randn(2, 400)

    network = Network.of(copy.deepcopy(model), [{"input_values": x}])

    name = "wav2vec2.encoder.pos_conv_embed.conv"
    expected = model.get_submodule(name).weight
    assert torch.equal(network.weight(name), expected.detach())
