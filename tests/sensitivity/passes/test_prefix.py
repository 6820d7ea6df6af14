"""Passes that skip what comes before a changed layer, against whole passes of the same network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.network.examples import Calibration
from mpq.network.modules import hooks
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity.passes.prefix import PrefixReuse, Recording, reusing

LOW = Precision.parse("w3a4d")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class InPlace(nn.Module):
    """Convolutions whose outputs are overwritten, as in torchvision's residual networks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.relu(self.first(x))
        y = self.second(y)
        y += x
        out: Tensor = self.head(F.relu_(y).mean(dim=(2, 3)))
        return out


class Overwriting(nn.Module):
    """A module that overwrites its input, which the caller then uses again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.same, self.relu = nn.Identity(), nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(self.relu(self.same(y)))
        out: Tensor = self.head(y + z)
        return out


class Containers(nn.Module):
    """Modules that return lists and dicts, which the caller changes."""

    class Inner(nn.Module):
        """A dict that holds a list that holds a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"parts": [self.left(x), (self.right(x), None)], "count": 2}

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = self.Inner(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.inner(x)
        found["parts"].append(found["parts"].pop(0) - found["parts"][0][0])
        found["count"] += 1
        return {"logits": self.head(found["parts"][-1] * found["count"])}


class Keeping(nn.Module):
    """A module that keeps its output, for another module to read."""

    class First(nn.Module):
        """Keeps what its layer said."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 5)
            self.kept = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.fc(x)
            return self.kept.tanh()

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = self.First(), self.First(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        out: Tensor = self.head(y + self.first.kept + self.second.kept)
        return out


class Cache:
    """An object that is neither a tensor nor holds any that can be seen."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []


class Caching(nn.Module):
    """Blocks that hand each other an object that they change, as key-value caches are."""

    class Block(nn.Module):
        """Sums what all blocks before said."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x: Tensor, cache: Cache) -> Tensor:
            cache.tensors.append(self.fc(x))
            return torch.stack(cache.tensors).sum(dim=0).tanh()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        cache = Cache()
        for block in self.blocks:
            x = block(x, cache=cache)
        return x


class Forces(nn.Module):
    """An energy's gradient by its input, which the forward takes itself, of every new pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.last(torch.tanh(self.second(torch.tanh(self.first(x))))).sum()
            return -torch.autograd.grad(energy, x)[0]


class Repeated(nn.Module):
    """A layer that is called three times, and a layer with its weight under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.again = nn.Linear(5, 5), nn.Linear(5, 5)
        self.again.weight = self.inner.weight
        self.between, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.inner(x).tanh()).tanh()
        x = self.again(self.between(x)).tanh()
        out: Tensor = self.head(self.inner(x))
        return out


class Branching(nn.Module):
    """Which modules run depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.even, self.odd = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.even(y) if int((y * 1000).sum()) % 2 == 0 else self.odd(self.odd(y))
        out: Tensor = self.head(y)
        return out


def make_hooked() -> nn.Module:
    """A user's hooks change inputs and outputs."""
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(4, 3))
    model[0].register_forward_hook(lambda _, __, output: output * 2)
    model[1].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    return model


def make_encoder() -> nn.Module:
    """Attention of torch, opened into layers; sequences come second."""
    block = nn.TransformerEncoderLayer(6, 2, 8, batch_first=False)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 6), encoder, nn.Linear(6, 3))


def make_llama() -> nn.Module:
    """Rotary embeddings and a cache, everything passed by keyword."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config)
    return model


def make_gpt2() -> nn.Module:
    """Transposed linear layers, position embeddings that the examples share."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def make_t5() -> nn.Module:
    """Encoder, decoder, relative positions and a cache for both kinds of attention."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    model: nn.Module = T5ForConditionalGeneration(config)
    return model


def images() -> Any:
    return torch.randn(4, 1, 5, 5)


def vectors() -> Any:
    return torch.randn(6, 5)


def sequences() -> Any:
    return torch.randn(6, 4, 5)


def tokens() -> Any:
    return {"input_ids": torch.randint(0, 12, (3, 5))}


def both_tokens() -> Any:
    return {**tokens(), "decoder_input_ids": torch.randint(0, 12, (3, 4))}


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "in_place": (InPlace, images),
    "overwriting": (Overwriting, vectors),
    "containers": (Containers, vectors),
    "keeping": (Keeping, vectors),
    "caching": (Caching, vectors),
    "forces": (Forces, vectors),
    "repeated": (Repeated, vectors),
    "branching": (Branching, vectors),
    "hooked": (make_hooked, vectors),
    "encoder": (make_encoder, sequences),
    "llama": (make_llama, tokens),
    "gpt2": (make_gpt2, tokens),
    "t5": (make_t5, both_tokens),
}


class Setting:
    """A network, a batch, and whole passes of it."""

    def __init__(self, model: nn.Module, data: Any) -> None:
        self.network = Network.of(model.eval(), [data])
        self.batch = Calibration([data]).first()
        self.quantizer = Quantizer(ActivationRanges({}))

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.network.layers]

    @contextmanager
    def changed(self, *layers: str) -> Iterator[None]:
        """These layers have few bits."""
        with quantized(self.network, dict.fromkeys(layers, LOW), self.quantizer):
            yield

    def whole(self, *layers: str) -> Tensor:
        """Outputs of a whole pass."""
        with torch.no_grad(), self.changed(*layers):
            return self.network.outputs(self.batch)

    def resumed(self, reuse: PrefixReuse, recording: Recording, *layers: str) -> Tensor:
        """Outputs of a pass that resumes from the last of these layers."""
        with self.changed(*layers):
            return reuse.outputs(recording, layers[-1])


@pytest.fixture(params=NETWORKS)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Every network."""
    torch.manual_seed(0)
    make_model, make_data = NETWORKS[request.param]
    return Setting(make_model(), make_data())


def test_resumed_pass_equals_a_whole_one_bit_by_bit(setting: Setting) -> None:
    """Every layer in turn, in the order that is asked for; the recording is the whole pass, too."""
    expected = {name: setting.whole(name) for name in setting.names}

    with reusing(setting.network) as reuse:
        recording = reuse.record(setting.batch)
        found = {n: setting.resumed(reuse, recording, n) for n in reversed(setting.names)}
        second = reuse.record(setting.batch)
        again = {n: setting.resumed(reuse, second, n) for n in reversed(setting.names)}

    assert torch.equal(recording.outputs, setting.whole())
    for name in setting.names:
        assert torch.equal(found[name], expected[name]), name
        assert torch.equal(again[name], expected[name]), name
    assert any(not torch.equal(found[name], recording.outputs) for name in found)


def test_recording_of_a_changed_network_resumes_from_the_original(setting: Setting) -> None:
    """Two layers changed: record with the first one changed, resume from the second."""
    names = setting.names
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    expected = {pair: setting.whole(*pair) for pair in pairs}

    found = {}
    with reusing(setting.network) as reuse:
        base = reuse.record(setting.batch)
        for first in reversed(names):
            with setting.changed(first):
                recording = reuse.record(setting.batch, base, first)
                for second in reversed(names[names.index(first) + 1 :]):
                    with setting.changed(second):
                        found[first, second] = reuse.outputs(recording, second)

    for pair in pairs:
        assert torch.equal(found[pair], expected[pair]), pair


def calls_of(setting: Setting, name: str) -> list[str]:
    """Which layers compute while the network resumes from a layer."""
    computed: list[str] = []
    layer_modules = {id(setting.network.layer_module(n)): n for n in setting.names}

    def spy(layer_module: nn.Module) -> Callable[..., Any]:
        forward = layer_module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            computed.append(layer_modules[id(layer_module)])
            return forward(*args, **kwargs)

        return run

    for layer in setting.names:
        vars(setting.network.layer_module(layer))["forward"] = spy(
            setting.network.layer_module(layer)
        )
    with reusing(setting.network) as reuse:
        recording = reuse.record(setting.batch)
        computed.clear()
        setting.resumed(reuse, recording, name)
    for layer in setting.names:
        del vars(setting.network.layer_module(layer))["forward"]
    return computed


@pytest.mark.parametrize(
    "network", ["in_place", "containers", "caching", "hooked", "encoder", "llama", "gpt2", "t5"]
)
def test_layers_before_the_changed_one_do_not_compute(network: str) -> None:
    """Also where their outputs are overwritten, inside blocks that must run, and beside caches."""
    make_model, make_data = NETWORKS[network]
    setting = Setting(make_model(), make_data())

    computed = {name: calls_of(setting, name) for name in setting.names}

    for place, name in enumerate(setting.names):
        assert computed[name] == setting.names[place:]


def test_first_call_of_a_repeated_layer_counts() -> None:
    """A layer that is called three times is changed from its first call on."""
    setting = Setting(Repeated(), vectors())

    computed = {name: calls_of(setting, name) for name in setting.names}

    everything = ["inner", "inner", "between", "again", "inner", "head"]
    assert computed["inner"] == everything
    assert computed["between"] == everything[2:]
    assert computed["again"] == everything[3:]
    assert computed["head"] == everything[5:]


def test_layer_that_is_not_called_changes_nothing() -> None:
    """The recorded outputs are returned; nothing runs."""
    setting = Setting(Branching(), vectors())
    uncalled = ({"even", "odd"} - set(setting.names)).pop()

    with reusing(setting.network) as reuse:
        recording = reuse.record(setting.batch)
        found = reuse.outputs(recording, uncalled)

    assert found is recording.outputs


def test_network_is_left_as_found() -> None:
    """No function stays replaced, also after an exception; what was replaced before comes back."""
    setting = Setting(make_hooked(), vectors())
    own = setting.network.layer_module("1").forward
    vars(setting.network.layer_module("1"))["forward"] = own
    before = [dict(vars(module)) for module in setting.network.module.modules()]

    with pytest.raises(RuntimeError, match="shapes"), reusing(setting.network) as reuse:
        reuse.record(Calibration([torch.randn(6, 4)]).first())

    assert [dict(vars(module)) for module in setting.network.module.modules()] == before


def test_failed_pass_leaves_a_usable_network() -> None:
    """After an error in the middle, passes outside a recording are plain ones."""
    setting = Setting(make_hooked(), vectors())
    expected = setting.whole()

    def fail(*_: Any) -> None:
        raise KeyError("stop")

    with reusing(setting.network) as reuse:
        recording = reuse.record(setting.batch)
        handle = setting.network.layer_module("2").register_forward_hook(fail)
        with pytest.raises(KeyError, match="stop"), hooks([handle]):
            reuse.outputs(recording, "1")
        found = setting.whole()

    assert torch.equal(found, expected)


def test_inference_mode_of_the_caller_does_not_matter() -> None:
    """Tensors of inference mode have no versions; recordings do without them."""
    setting = Setting(InPlace(), images())
    expected = {name: setting.whole(name) for name in setting.names}

    with torch.inference_mode(), reusing(setting.network) as reuse:
        recording = reuse.record(setting.batch)
        found = {n: setting.resumed(reuse, recording, n) for n in reversed(setting.names)}

    for name in setting.names:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_module_is_one_call() -> None:
    """TorchScript is not looked into, and its forward is not replaced."""

    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
            self.middle = torch.jit.trace(nn.Tanh(), torch.randn(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.middle(self.first(x)))
            return out

    setting = Setting(Scripted(), vectors())
    expected = {name: setting.whole(name) for name in setting.names}

    with reusing(setting.network) as reuse:
        recording = reuse.record(setting.batch)
        found = {n: setting.resumed(reuse, recording, n) for n in reversed(setting.names)}

    for name in setting.names:
        assert torch.equal(found[name], expected[name]), name
