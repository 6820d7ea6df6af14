"""Which layers a model has: shapes, counts, names, and what they share."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import ModelError, UnknownNameError
from mpq.network.layer import Layer
from mpq.network.network import Network, find_layers

Shape = tuple[int, ...]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Head(nn.Module):
    """A module, then the mean over everything behind the channel axis: ``[N, C]``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y.flatten(2).mean(dim=2) if y.ndim > 2 else y


class Returns(nn.Module):
    """Layers by name, and a function of them and the input that makes the logits."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(self, x)
        return y


def by_name(layers: tuple[Layer, ...]) -> dict[str, Layer]:
    """Layers by name."""
    return {layer.name: layer for layer in layers}


CONVOLUTIONS: list[tuple[nn.Module, Shape, Shape, int]] = [
    # module, input and output of one example, MACs: outputs x (inputs per group x kernel)
    (nn.Conv1d(4, 6, 3), (4, 10), (6, 8), 6 * 8 * 4 * 3),
    (nn.Conv1d(4, 4, 3, groups=4, padding=1), (4, 10), (4, 10), 4 * 10 * 3),
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 8, 8), (8, 4, 4), 8 * 16 * 3 * 9),
    (nn.Conv2d(4, 8, (3, 1), groups=2), (4, 6, 5), (8, 4, 5), 8 * 20 * 2 * 3),
    (nn.Conv2d(6, 6, 3, groups=6, padding="same"), (6, 5, 5), (6, 5, 5), 6 * 25 * 9),
    (nn.Conv2d(2, 3, 3, dilation=2), (2, 9, 9), (3, 5, 5), 3 * 25 * 2 * 9),
    (nn.Conv3d(2, 4, 2, groups=2), (2, 4, 4, 4), (4, 3, 3, 3), 4 * 27 * 1 * 8),
    # transposed: inputs x (outputs per group x kernel)
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 5), (6, 11), 4 * 5 * 6 * 3),
    (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (4, 3, 3), (6, 6, 6), 4 * 9 * 3 * 4),
]


@pytest.mark.parametrize(("module", "read", "written", "macs"), CONVOLUTIONS, ids=str)
def test_convolution_is_described(module: Any, read: Shape, written: Shape, macs: int) -> None:
    """Shapes, elements and MACs of one example, against a count by hand."""
    model = Head(module).eval()

    (layer,) = find_layers(model, [torch.randn(3, *read)])

    assert layer.name == "body"
    assert layer.kind == type(module).__name__.lower().replace("transpose", "_transpose")
    assert layer.weight_shape == tuple(module.weight.shape)
    assert (layer.input_shape, layer.output_shape) == (read, written)
    assert layer.input_elements == torch.Size(read).numel()
    assert layer.output_elements == torch.Size(written).numel()
    assert layer.num_channels == module.out_channels
    assert layer.groups == module.groups
    assert layer.macs == macs
    assert layer.calls == 1


def test_linear_is_described() -> None:
    """A vector in, a vector out: one MAC per weight."""
    (layer,) = find_layers(nn.Linear(7, 3).eval(), [torch.randn(5, 7)])

    assert layer == Layer("", "linear", (3, 7), 3, (7,), (3,), 7, 3, 21)


def test_linear_on_a_sequence_counts_every_position() -> None:
    """Six positions need six times the MACs."""
    (layer,) = find_layers(nn.Linear(7, 3).eval(), [torch.randn(5, 6, 7)])

    assert layer == Layer("", "linear", (3, 7), 3, (6, 7), (6, 3), 42, 18, 126)


def test_embedding_reads_ids_and_multiplies_nothing() -> None:
    """A table look-up has no MAC; a row is a channel."""
    model = Returns(lambda m, x: m.fc(m.table(x)), table=nn.Embedding(11, 4), fc=nn.Linear(4, 3))

    table, _ = find_layers(model.eval(), [torch.randint(0, 11, (2, 5))])

    assert table == Layer("table", "embedding", (11, 4), 11, (5,), (5, 4), 5, 20, 0)


def test_counts_do_not_depend_on_the_batch() -> None:
    """Everything is per example."""
    model = Head(nn.Conv2d(3, 8, 3)).eval()

    one, many = (find_layers(model, [torch.randn(n, 3, 6, 6)]) for n in (1, 7))

    assert one == many


def test_layers_come_in_the_order_of_their_first_call() -> None:
    """Not in the order in which they were registered."""
    model = Returns(lambda m, x: m.a(m.b(x)), a=nn.Linear(4, 3), b=nn.Linear(5, 4)).eval()

    layers = find_layers(model, [torch.randn(2, 5)])

    assert [layer.name for layer in layers] == ["b", "a"]


def test_layer_called_twice_counts_twice() -> None:
    """Reads, writes and MACs of both calls are added; the shapes are the first call's."""
    model = Returns(lambda m, x: m.fc(F.relu(m.fc(x))), fc=nn.Linear(4, 4)).eval()

    (layer,) = find_layers(model, [torch.randn(2, 4)])

    assert layer.calls == 2
    assert (layer.input_elements, layer.output_elements, layer.macs) == (8, 8, 32)
    assert (layer.input_shape, layer.output_shape) == ((4,), (4,))


def test_module_under_two_names_is_one_layer() -> None:
    """The second name is an alias."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()

    (layer,) = find_layers(model, [torch.randn(2, 4)])

    assert layer.name == "0"
    assert layer.aliases == ("2",)
    assert layer.calls == 2


def test_layer_that_is_not_called_is_listed_apart() -> None:
    """An auxiliary head that evaluation never reaches is no layer of the search."""
    model = Returns(lambda m, x: m.fc(x), fc=nn.Linear(4, 3), extra=nn.Linear(4, 2)).eval()

    network = Network.of(model, [torch.randn(2, 4)])

    assert [layer.name for layer in network.layers] == ["fc"]
    assert network.uncalled == ("extra",)


def test_layer_called_by_keyword_is_found() -> None:
    """``layer(input=x)`` is what ``layer(x)`` is."""
    by_name_ = Returns(lambda m, x: m.fc(input=x), fc=nn.Linear(4, 3)).eval()
    by_place = Returns(lambda m, x: m.fc(x), fc=nn.Linear(4, 3)).eval()
    x = torch.randn(2, 4)

    assert find_layers(by_name_, [x]) == find_layers(by_place, [x])


def test_layers_that_read_one_tensor_are_tied() -> None:
    """Two layers on one tensor: its quantized copy is stored once."""
    layers = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3), "c": nn.Linear(3, 3)}
    model = Returns(lambda m, x: m.c(m.a(x) + m.b(x)), **layers).eval()

    network = Network.of(model, [torch.randn(2, 4)])

    assert by_name(network.layers)["b"].input_of == "a"
    assert by_name(network.layers)["c"].input_of is None
    assert network.ties == (("a", "b"),)


def test_change_in_place_between_readers_does_not_tie() -> None:
    """After an in-place ReLU the memory is the same, but not the numbers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.b(y)
        F.relu_(y)
        return torch.add(z, m.c(y))

    layers = {name: nn.Linear(4, 4) for name in "abc"}

    network = Network.of(Returns(forward, **layers).eval(), [torch.randn(2, 4)])

    assert by_name(network.layers)["c"].input_of is None
    assert network.ties == ()


def test_slices_of_one_tensor_do_not_tie() -> None:
    """Different parts of one storage are different inputs."""
    layers = {"a": nn.Linear(2, 3), "b": nn.Linear(2, 3)}
    model = Returns(lambda m, x: m.a(x[:, :2]) + m.b(x[:, 2:]), **layers).eval()

    network = Network.of(model, [torch.randn(2, 4)])

    assert network.ties == ()


def test_tied_embedding_shares_its_weight_with_the_head() -> None:
    """Tied weights are two layers, one parameter, one precision."""
    model = Returns(lambda m, x: m.head(m.table(x)), table=nn.Embedding(9, 4), head=nn.Linear(4, 9))
    model.get_submodule("head").weight = model.get_submodule("table").weight

    network = Network.of(model.eval(), [torch.randint(0, 9, (2, 3))])

    assert by_name(network.layers)["head"].weight_of == "table"
    assert by_name(network.layers)["table"].weight_of is None
    assert network.ties == (("table", "head"),)


def attention_model(**options: Any) -> nn.Module:
    """Self attention over 5 tokens of 8 numbers, then the mean."""

    def forward(m: Any, x: Tensor) -> Tensor:
        mixed: Tensor = m.mix(x, x, x, need_weights=False)[0]
        return mixed.mean(dim=1)

    mix = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    return Returns(forward, mix=mix).eval()


def test_attention_projections_are_layers() -> None:
    """Query, key and value read one tensor, so that they are tied; the output is by itself."""
    network = Network.of(attention_model(), [torch.randn(2, 5, 8)])

    sizes = ("linear", (8, 8), 8, (5, 8), (5, 8), 40, 40, 5 * 8 * 8)
    assert network.layers == (
        Layer("mix.q_proj", *sizes),
        Layer("mix.k_proj", *sizes, input_of="mix.q_proj"),
        Layer("mix.v_proj", *sizes, input_of="mix.q_proj"),
        Layer("mix.out_proj", *sizes, fed_by=("mix.q_proj", "mix.k_proj", "mix.v_proj")),
    )
    assert network.ties == (("mix.q_proj", "mix.k_proj", "mix.v_proj"),)


def test_attention_with_own_key_width_has_four_layers() -> None:
    """With ``kdim`` and ``vdim`` the projections are separate, and each has its own width."""

    def forward(m: Any, x: Tensor) -> Tensor:
        mixed: Tensor = m.mix(x, x[..., :6], x[..., :4], need_weights=False)[0]
        return mixed.mean(dim=1)

    mix = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)

    layers = by_name(find_layers(Returns(forward, mix=mix).eval(), [torch.randn(2, 5, 8)]))

    assert list(layers) == ["mix.q_proj", "mix.k_proj", "mix.v_proj", "mix.out_proj"]
    shapes = [layer.weight_shape for layer in layers.values()]
    assert shapes == [(8, 8), (8, 6), (8, 4), (8, 8)]
    assert [layer.macs for layer in layers.values()] == [5 * 64, 5 * 48, 5 * 32, 5 * 64]


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformer_encoder_is_opened(batch_first: bool) -> None:
    """No fused shortcut hides the layers, whichever axis is the batch."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    axis = 1 if batch_first else 0
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=batch_first)

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.encoder(x if batch_first else x.transpose(0, 1)).mean(dim=axis)
        return y

    model = Returns(forward, encoder=encoder).eval()

    layers = find_layers(model, [torch.randn(2, 5, 8)])

    attention = tuple(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out"))
    own = (*attention, "linear1", "linear2")
    assert [layer.name for layer in layers] == [
        f"encoder.layers.{i}.{name}" for i in range(2) for name in own
    ]
    assert [layer.macs for layer in layers] == [*[5 * 64] * 4, 5 * 128, 5 * 128] * 2
    assert [layer.input_shape for layer in layers] == [*[(5, 8)] * 5, (5, 16)] * 2


def test_hugging_face_llama_works_unchanged() -> None:
    """Inputs by name, ``.logits`` out; layers on one tensor are tied, tied weights too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    ids = torch.randint(0, 20, (2, 5))
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]

    network = Network.of(LlamaForCausalLM(config).eval(), data)

    layers = by_name(network.layers)
    block = "model.layers.0."
    attention = tuple(f"{block}self_attn.{x}_proj" for x in "qkv")
    assert layers[attention[1]].weight_shape == (4, 8)
    assert layers[attention[1]].macs == 5 * 32
    assert layers["lm_head"].weight_of == "model.embed_tokens"
    assert set(network.ties) == {
        attention,
        (f"{block}mlp.gate_proj", f"{block}mlp.up_proj"),
        ("model.embed_tokens", "lm_head"),
    }


def test_hugging_face_bert_ties_query_key_value() -> None:
    """Query, key and value of one block read one tensor."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    ids = torch.randint(0, 20, (2, 5))
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]

    network = Network.of(BertForSequenceClassification(config).eval(), data)

    expected = [
        tuple(f"bert.encoder.layer.{i}.attention.self.{x}" for x in ("query", "key", "value"))
        for i in range(2)
    ]
    assert list(network.ties) == expected


def test_hugging_face_conv1d_is_a_linear_layer() -> None:
    """GPT-2 stores its linear weights as ``[I, O]``: the channels are the second axis."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    ids = torch.randint(0, 20, (2, 5))

    network = Network.of(GPT2LMHeadModel(config).eval(), [{"input_ids": ids}])

    layer = by_name(network.layers)["transformer.h.0.attn.c_attn"]
    assert (layer.kind, layer.weight_shape, layer.num_channels) == ("linear", (8, 24), 24)
    assert (layer.input_shape, layer.output_shape) == ((5, 8), (5, 24))
    assert layer.macs == 5 * 8 * 24
    assert ("transformer.wte", "lm_head") in network.ties


def test_output_is_that_of_the_model() -> None:
    """The network, opened and copied, says what the model says."""
    model, x = attention_model(), torch.randn(2, 5, 8)

    network = Network.of(model, [x])

    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x), atol=1e-6, rtol=0)


def three_layers() -> nn.Sequential:
    """Layers ``0``, ``1`` and ``2``."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).eval()


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["0", "1", "2"]),
        (["[01]"], [], ["0", "1"]),
        (["0", "2"], [], ["0", "2"]),
        ([], ["1"], ["0", "2"]),
        (["*"], ["0", "1"], ["2"]),
    ],
)
def test_globs_choose_layers(include: list[str], exclude: list[str], expected: list[str]) -> None:
    """Included by any glob, excluded by none, in the order of calls."""
    network = Network.of(three_layers(), [torch.randn(2, 4)], include, exclude)

    assert [layer.name for layer in network.layers] == expected


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_glob_that_matches_nothing_is_refused(option: str) -> None:
    """A typing error would otherwise go unnoticed."""
    chosen: dict[str, Any] = {option: ["conv*"]}

    with pytest.raises(UnknownNameError, match=f"no layer for {option} \\(--{option}\\) 'conv\\*'"):
        Network.of(three_layers(), [torch.randn(2, 4)], **chosen)


def test_excluding_everything_is_refused() -> None:
    """Nothing is left to search."""
    with pytest.raises(ModelError, match="no quantizable layer, or all are excluded"):
        Network.of(three_layers(), [torch.randn(2, 4)], exclude=["*"])


def unusable() -> Iterator[Any]:
    """Models that are refused, and what is said."""
    train = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    yield pytest.param(train, "training mode.*call model.eval", id="training")

    dropout = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval()
    dropout.get_submodule("1").train()
    yield pytest.param(dropout, r"training mode \(1\)", id="dropout in training mode")

    nan = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        nan.get_parameter("1.bias")[2] = float("nan")
    yield pytest.param(nan, "parameter '1.bias' has values that are NaN", id="nan")

    meta = nn.Sequential(nn.Linear(4, 4, device="meta")).eval()
    yield pytest.param(meta, "parameter '0.weight' has no values yet", id="meta")

    lazy = nn.Sequential(nn.LazyLinear(4)).eval()
    yield pytest.param(lazy, "parameter '0.weight' has no values yet", id="lazy")

    yield pytest.param(nn.Sequential(nn.ReLU()).eval(), "no parameters", id="no parameters")
    yield pytest.param(nn.LayerNorm(4).eval(), "no quantizable layer", id="no layers")

    uncalled = Returns(lambda _, x: x, fc=nn.Linear(4, 4)).eval()
    yield pytest.param(uncalled, r"no quantizable layer \(1 are never called", id="uncalled")

    twice = Returns(lambda m, x: F.linear(F.linear(x, m.w), m.w.t())).eval()
    twice.register_parameter("w", nn.Parameter(torch.randn(5, 4)))
    told = "no quantizable layer, or all are excluded; w is used both as linear of"
    yield pytest.param(twice, told, id="a weight in two layouts")

    yield pytest.param(torch.relu, "expected an nn.Module, got a builtin", id="function")
    infinite = Returns(lambda m, x: m.fc(x) / 0, fc=nn.Linear(4, 4)).eval()
    yield pytest.param(infinite, "output has values that are NaN or infinite", id="output")


@pytest.mark.parametrize(("model", "message"), list(unusable()))
def test_unusable_model_is_refused(model: Any, message: str) -> None:
    """What no search can work with is refused in a sentence, as a ``ModelError``."""
    with pytest.raises(ModelError, match=message):
        find_layers(model, [torch.randn(2, 4)])


def test_model_is_left_as_it_was() -> None:
    """No hook, no gradient, no changed flag, no random draw."""
    model = attention_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()

    find_layers(model, [torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))])

    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(model.get_submodule("mix"), nn.MultiheadAttention)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
        assert parameter.grad is None
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_hooks_are_removed_after_a_failure() -> None:
    """A model whose forward pass raises has no hooks afterwards; its own error comes through."""

    def fail(m: Any, x: Tensor) -> Tensor:
        m.fc(x)
        raise KeyError("the model's own")

    model = Returns(fail, fc=nn.Linear(4, 4)).eval()

    with pytest.raises(KeyError, match="the model's own"):
        find_layers(model, [torch.randn(2, 4)])

    assert not model.get_submodule("fc")._forward_hooks


class Idle(nn.Module):
    """Layers without weights, and layers that are called with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.nothing, self.constant = nn.Linear(8, 8), nn.Linear(8, 0), nn.Linear(0, 8)
        self.boxes = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x) + self.constant(x[:, :0])
        y: Tensor = torch.cat([hidden, self.nothing(hidden)], dim=1) + self.boxes(hidden[:0]).sum()
        return y


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_holds_nothing_is_no_layer_and_what_reads_nothing_is_not_reached() -> None:
    """``nn.Linear(8, 0)`` has no weight to round; a head without boxes says nothing of its own."""
    network = Network.of(Idle().eval(), [torch.randn(3, 8)])

    assert [layer.name for layer in network.layers] == ["body"]
    assert network.uncalled == ("boxes",)


class Windows(nn.Module):
    """Two windows of each example lie in the first axis, so that positions may be second."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, T, 4]``."""
        windows = x.reshape(2 * x.shape[0], x.shape[1] // 2, x.shape[2])
        y: Tensor = self.outer(self.inner(windows).relu().reshape(x.shape))
        return y


class SequenceFirst(Windows):
    """Examples are second inside."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, T, 4]``."""
        y: Tensor = self.outer(self.inner(x.transpose(0, 1)).relu().transpose(0, 1))
        return y


@pytest.mark.parametrize("num_examples", [1, 2, 3, 6, 8])
def test_examples_are_in_the_axis_that_changes_with_the_batch(num_examples: int) -> None:
    """Not in one that has the same length by chance: positions, windows."""
    x = torch.randn(num_examples, 6, 8)

    windows = by_name(find_layers(Windows().eval(), [x]))
    sequence = by_name(find_layers(SequenceFirst().eval(), [x]))

    assert [windows[name].batch_axis for name in ("inner", "outer")] == [0, 0]
    assert [sequence[name].batch_axis for name in ("inner", "outer")] == [1, 0]
    assert sequence["inner"].input_shape == (6, 8)


def test_channels_are_no_examples() -> None:
    """Frames in the first axis of a convolution, as many channels as examples in the second."""
    conv, head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def frames(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2])
        found: Tensor = self.head(y.mean(1))
        return found

    model = Returns(frames, conv=conv, head=head).eval()
    found = by_name(find_layers(model, [torch.randn(4, 3, 4, 5, 5)]))

    assert found["conv"].batch_axis == 0
    assert found["conv"].input_shape == (12, 4, 5, 5)


def test_a_batch_size_that_is_built_in_is_no_error() -> None:
    """Where the batch cannot be smaller, the second axis is taken at its word."""

    def fixed(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.head(x.reshape(4, 6, 8).transpose(0, 1)).transpose(0, 1)
        return y

    found = find_layers(Returns(fixed, head=nn.Linear(8, 3)).eval(), [torch.randn(4, 6, 8)])

    assert found[0].batch_axis == 1
