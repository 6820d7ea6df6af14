"""Attention opened into its projections computes what torch's own does."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mpq.network.attention import OpenAttention
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.network.opening import open_layers

N, T, S, E, H = 3, 5, 7, 8, 2


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def attention(**options: Any) -> nn.MultiheadAttention:
    """Eight numbers per token, two heads, biases that are not zero."""
    module = nn.MultiheadAttention(E, H, **options).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return module


def opened(module: nn.Module) -> Any:
    """The module opened, in a copy that shares its parameters."""
    return open_layers(share_parameters(module))


def assert_same(module: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> None:
    """Outputs and attention weights agree to 1e-5."""
    with torch.no_grad():
        expected = module(*args, **kwargs)
        found = opened(module)(*args, **kwargs)
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)


def tokens(length: int, width: int, batch_first: bool) -> Tensor:
    """Random tokens of ``N`` examples."""
    x = torch.randn(N, length, width)
    return x if batch_first else x.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_self_attention(batch_first: bool, bias: bool, need_weights: bool) -> None:
    """Query, key and value are one tensor."""
    module = attention(batch_first=batch_first, bias=bias)

    x = tokens(T, E, batch_first)

    assert_same(module, x, x, x, need_weights=need_weights)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [(E, E), (6, 4), (E, 4)], ids=str)
def test_cross_attention(batch_first: bool, widths: tuple[int, int]) -> None:
    """Keys and values come from elsewhere, with widths of their own."""
    module = attention(batch_first=batch_first, kdim=widths[0], vdim=widths[1])

    query, key, value = (
        tokens(n, width, batch_first) for n, width in ((T, E), (S, widths[0]), (S, widths[1]))
    )

    assert_same(module, query, key, value)


def test_query_and_key_alike_but_not_the_value() -> None:
    """As in DETR: positions are added to query and key only."""
    module, x = attention(batch_first=True), tokens(T, E, True)

    placed = x + torch.randn(T, E)

    assert_same(module, placed, placed, x)


@pytest.mark.parametrize("average", [True, False])
def test_attention_weights_per_head(average: bool) -> None:
    """Averaged over the heads, or one matrix per head."""
    module, x = attention(batch_first=True), tokens(T, E, True)

    _, weights = opened(module)(x, x, x, average_attn_weights=average)

    assert weights.shape == ((N, T, T) if average else (N, H, T, T))
    assert_same(module, x, x, x, average_attn_weights=average)


CAUSAL = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)


def masks() -> list[Any]:
    """Every kind of mask, by name."""
    generator = torch.Generator().manual_seed(0)
    per_head = torch.rand(N * H, T, T, generator=generator) < 0.4
    per_head[..., 0] = False  # something is left to attend to
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[1, 3:] = True
    minus = torch.zeros(N, T).masked_fill(padding, float("-inf"))
    slope = torch.randn(T, T, generator=generator)
    return [
        pytest.param({"attn_mask": CAUSAL}, id="bool"),
        pytest.param({"attn_mask": slope}, id="float"),
        pytest.param({"attn_mask": per_head}, id="bool 3-D"),
        pytest.param({"attn_mask": per_head * -1e4}, id="float 3-D"),
        pytest.param({"key_padding_mask": padding}, id="padding"),
        pytest.param({"key_padding_mask": minus}, id="float padding"),
        pytest.param({"attn_mask": CAUSAL, "key_padding_mask": padding}, id="both"),
        pytest.param({"attn_mask": slope, "key_padding_mask": minus}, id="both float"),
        pytest.param({"attn_mask": CAUSAL, "is_causal": True}, id="causal"),
    ]


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_masks(mask: dict[str, Any], batch_first: bool, need_weights: bool) -> None:
    """What a mask hides is not attended to, whatever the mask's type and shape."""
    module, x = attention(batch_first=batch_first), tokens(T, E, batch_first)

    assert_same(module, x, x, x, need_weights=need_weights, **mask)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"attn_mask": CAUSAL},
        {"attn_mask": torch.stack([CAUSAL, CAUSAL.T.tril(-1)])},
        {"key_padding_mask": torch.tensor([False, False, False, True, True])},
        {"average_attn_weights": False},
        {"need_weights": False},
    ],
    ids=["none", "mask", "mask 3-D", "padding", "per head", "no weights"],
)
def test_single_example_without_a_batch_axis(batch_first: bool, mask: dict[str, Any]) -> None:
    """Unbatched input gives unbatched output and weights."""
    module, x = attention(batch_first=batch_first), torch.randn(T, E)

    assert_same(module, x, x, x, **mask)


def test_bfloat16() -> None:
    """The dtype of the module is kept, with masks as well."""
    module = attention(batch_first=True).to(torch.bfloat16)
    x = tokens(T, E, True).to(torch.bfloat16)

    output, _ = opened(module)(x, x, x, attn_mask=CAUSAL)

    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, module(x, x, x, attn_mask=CAUSAL)[0], atol=0.05, rtol=0.05)


@given(
    flags=st.fixed_dictionaries(
        {name: st.booleans() for name in ("batch_first", "bias", "add_bias_kv", "add_zero_attn")}
    ),
    widths=st.sampled_from([(E, E), (6, 4)]),
    mask=st.sampled_from(["none", "bool", "float", "per head"]),
    padding=st.sampled_from(["none", "bool", "float"]),
    need_weights=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_all_flags_together(
    flags: dict[str, bool],
    widths: tuple[int, int],
    mask: str,
    padding: str,
    need_weights: bool,
) -> None:
    """Also keys that no token has, which no mask hides."""
    module = attention(kdim=widths[0], vdim=widths[1], **flags)
    hidden, padded = torch.rand(N * H, T, S) < 0.4, torch.rand(N, S) < 0.4
    hidden[..., 0], padded[:, 0] = False, False  # something is left to attend to
    masks = {"none": None, "bool": hidden[0], "float": torch.randn(T, S), "per head": hidden}
    minus = torch.zeros(N, S).masked_fill(padded, float("-inf"))
    paddings = {"none": None, "bool": padded, "float": minus}

    inputs = (
        tokens(n, width, flags["batch_first"])
        for n, width in ((T, E), (S, widths[0]), (S, widths[1]))
    )

    given_masks = {"attn_mask": masks[mask], "key_padding_mask": paddings[padding]}
    assert_same(module, *inputs, need_weights=need_weights, **given_masks)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_extra_keys_of_a_single_example(option: str) -> None:
    """Without a batch axis, too."""
    module, x = attention(**{option: True}), torch.randn(T, E)

    assert_same(module, x, x, x, attn_mask=CAUSAL)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 4}, {"bias": False}])
def test_attributes_can_be_read(options: dict[str, Any]) -> None:
    """A forward pass reads widths and weights of its attention; weights are the current ones."""
    module = attention(**options)
    found = opened(module)

    with torch.no_grad():
        found.k_proj.weight = nn.Parameter(found.k_proj.weight + 1)

    for name in ("embed_dim", "head_dim", "num_heads", "kdim", "vdim", "dropout", "bias_k"):
        assert getattr(found, name) == getattr(module, name)
    if module.in_proj_weight is None:
        assert found.in_proj_weight is None
        assert torch.equal(found.k_proj_weight, module.k_proj_weight + 1)
    else:
        assert torch.equal(found.in_proj_weight[:E], module.in_proj_weight[:E])
        assert torch.equal(found.in_proj_weight[E : 2 * E], module.in_proj_weight[E : 2 * E] + 1)
        assert torch.equal(found.q_proj_weight, module.in_proj_weight[:E])
    assert (found.in_proj_bias is None) == (module.in_proj_bias is None)


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 4}, {"bias": False}])
def test_parameters_are_shared(options: dict[str, Any]) -> None:
    """No weight is copied."""
    module = attention(**options)

    found_module = opened(module)

    memory = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found = [p.untyped_storage().data_ptr() for p in found_module.parameters()]
    assert set(found) <= memory
    assert len(found) == (4 if options.get("bias") is False else 8)


def test_mode_is_kept_and_no_number_is_drawn() -> None:
    """Opening initializes nothing: the global random state stays."""
    module = attention()
    state = torch.get_rng_state()

    found = opened(module)

    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part.training for part in found.modules())


def test_shared_attention_stays_shared() -> None:
    """One module used in two places is opened once."""
    shared = attention(batch_first=True)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared})})

    open_layers(model)

    a, inner = model["a"], model["b"]
    assert isinstance(a, OpenAttention)
    assert isinstance(inner, nn.ModuleDict)
    assert inner["c"] is a


def test_attention_under_two_names_of_one_parent_is_opened_under_both() -> None:
    """No name is left with the closed module."""
    shared = attention(batch_first=True)
    model = nn.ModuleDict({"a": shared, "b": shared})

    open_layers(model)

    assert isinstance(model["a"], OpenAttention)
    assert model["b"] is model["a"]


class Encoder(nn.Module):
    """A ``TransformerEncoder`` whose logits are its tokens."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(E, H, 16, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(block, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        y: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return y


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_says_the_same_where_nothing_is_padded() -> None:
    """torch's fused path zeroes padded positions; all others agree."""
    model, x = Encoder().eval(), torch.randn(N, T, E)
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[0, 2:] = True
    padding[2, 4:] = True
    with torch.no_grad():
        expected = model(x, padding)

        found = Network.of(model, [(x, None)]).module(x, padding)

    torch.testing.assert_close(found[~padding], expected[~padding], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"norm_first": True}, {"activation": "gelu"}, {"bias": False}])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_encoder_variants_say_the_same(options: dict[str, Any]) -> None:
    """Whichever path torch takes, the opened encoder agrees with it."""
    model, x = Encoder(**options).eval(), torch.randn(N, T, E)

    network = Network.of(model, [x])

    with torch.no_grad():
        torch.testing.assert_close(network.module(x), model(x), atol=1e-5, rtol=0)


def test_decoder_says_the_same() -> None:
    """Self attention under a causal mask, then cross attention to a memory."""
    layer = nn.TransformerDecoderLayer(E, H, 16, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    x, memory = torch.randn(N, T, E), torch.randn(N, S, E)
    with torch.no_grad():
        expected = model(x, memory, tgt_mask=CAUSAL)

        network = Network.of(model, [((x, memory), None)])
        found = network.module(x, memory, tgt_mask=CAUSAL)

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    calls = {layer.name: layer.calls for layer in network.layers}
    assert calls["layers.0.self_attn.q_proj"] == 1
