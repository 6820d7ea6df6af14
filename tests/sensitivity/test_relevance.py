"""Relevance against the papers' formulas written out, conservation, and plain gradients."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.metrics import METRICS
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.relevance_rules import propagating
from mpq.sensitivity.relevance import Relevance, explain

CHOICES = tuple(map(Precision.parse, ("w2", "w4a8")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Record:
    """Signed relevance of every layer's input, and of an embedding's output."""

    reads_inputs = True

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """Of several calls, the first one's stays."""
        self.of[tap.name] = x * g

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """Only embeddings."""
        if isinstance(tap.layer_module, nn.Embedding):
            self.of[tap.name] = F.embedding(x, tap.layer_module.weight) * g


def relevances(
    model: nn.Module, x: Any, epsilon: float = 1e-12, rule: str = "lrp", metric: str = "kl"
) -> dict[str, Tensor]:
    """Layer to the relevance of the numbers that it reads, for one batch."""
    data = Calibration([x])
    network = Network.of(model.eval(), data, metric=METRICS.build(metric))
    record = Record()
    with propagating(network.module, epsilon) if rule == "lrp" else nullcontext():
        explain(network, data.first(), record)
    return record.of


def contributions(model: nn.Module, batches: list[Any], **options: Any) -> dict[str, float]:
    """Layer to its share, read off the table with the errors divided out."""
    data = Calibration(batches)
    network = Network.of(model.eval(), data)
    quantizer = Quantizer(ActivationRanges.calibrate(network, data, CHOICES))
    table = Relevance(**options).estimate(Estimation(network, data, quantizer, CHOICES[:1])).table
    assert (table.name, table.unit) == ("relevance", "relative")
    shares = {}
    for name, value in zip(table.layers, table.values[:, 0], strict=True):
        weight = network.weight(name).double()
        rounded = quantizer.weight(name, network.layer_module(name), CHOICES[0].weight).double()
        shares[name] = float(value / ((rounded - weight).square().sum() / weight.square().sum()))
    return shares


class Residual(nn.Module):
    """Convolutions without biases, maxima, and two additions of functional results."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.relu(self.deep(y) + y)
        y = F.relu_(self.deep(F.max_pool2d(y, 2)) + y[..., ::2, ::2])
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def test_relevance_is_conserved_in_a_residual_network() -> None:
    """What the network's input got adds up to the logit that is explained; so do both branches."""
    model, x = Residual().double(), torch.randn(5, 2, 6, 6, dtype=torch.float64)

    found = relevances(model, x)

    explained = model(x).amax(dim=1)
    torch.testing.assert_close(found["stem"].sum((1, 2, 3)), explained)
    torch.testing.assert_close(found["head"].sum(1), explained)


def test_gradient_rule_is_relevance_in_a_network_without_biases() -> None:
    """Input times gradient, by plain autograd, equals LRP-epsilon for rectifiers."""
    model, x = Residual().double(), torch.randn(5, 2, 6, 6, dtype=torch.float64)

    found = relevances(model, x), relevances(model, x, rule="gradient")

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).amax(dim=1).sum(), x)
    for one in found:
        torch.testing.assert_close(one["stem"], (x * gradient).detach())
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


@pytest.mark.parametrize("epsilon", [1e-9, 0.3])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_relevance_is_that_of_the_explicit_sum(activation: type, epsilon: float) -> None:
    """``R_i = sum_j x_i w_ij / (z_j + epsilon sign z_j) R_j``, neuron by neuron, with biases."""
    model = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 6), activation())
    model = model.append(nn.Linear(6, 3)).double()
    x = torch.randn(1, 4, dtype=torch.float64)

    found = relevances(model, x, epsilon)

    values = [x[0]]
    for module in model:
        values.append(module(values[-1]).detach())
    logits = values.pop()
    relevance = torch.where(logits == logits.max(), logits, 0.0)
    for index in (4, 2, 0):
        weight = model.get_parameter(f"{index}.weight").detach()
        bias = model.get_parameter(f"{index}.bias").detach()
        into = torch.zeros(weight.shape[1], dtype=torch.float64)
        for j in range(weight.shape[0]):
            z = float(weight[j] @ values[index] + bias[j])
            for i in range(weight.shape[1]):
                share = values[index][i] * float(weight[j, i]) / (z + epsilon * np.sign(z))
                into[i] += share * relevance[j]
        torch.testing.assert_close(found[str(index)][0], into, rtol=1e-5, atol=1e-8)
        relevance = into  # passes the activation unchanged


class Attention(nn.Module):
    """One head without biases; how attention is computed is an argument."""

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 4, bias=False) for _ in range(3))
        self.head = nn.Linear(4, 5, bias=False)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.attend(self.q(x), self.k(x), self.v(x)))
        return out


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As most networks have it."""
    return F.softmax(q @ k.transpose(-2, -1) / 2, dim=-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same."""
    return torch.einsum("nts,nsd->ntd", torch.einsum("ntd,nsd->nts", q, k).div(2).softmax(-1), v)


def fused(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """torch's own."""
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], **options)[:, 0]


BANDED = torch.ones(4, 4, dtype=torch.bool).tril(1)
ATTENTION = {
    "written out": (written_out, None),
    "einsum": (by_einsum, None),
    "fused": (fused, None),
    "causal": (lambda q, k, v: fused(q, k, v, is_causal=True), torch.ones(4, 4).tril().bool()),
    "boolean mask": (lambda q, k, v: fused(q, k, v, attn_mask=BANDED), BANDED),
    "additive mask": (
        lambda q, k, v: fused(q, k, v, attn_mask=torch.where(BANDED, 0.0, -torch.inf).double()),
        BANDED,
    ),
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_has_the_relevance_of_the_paper(kind: str) -> None:
    """Equations of AttnLRP's propositions 3.1 to 3.3, as sums over relevances."""
    attend, mask = ATTENTION[kind]
    model, x = Attention(attend).double(), torch.randn(1, 4, 3, dtype=torch.float64)

    found = relevances(model, x)

    q, k, v = (linear(x[0]).detach() for linear in (model.q, model.k, model.v))
    scores = q @ k.T / 2
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1) if mask is not None else None
    weights = scores.softmax(-1) if weights is None else weights
    mixed = weights @ v
    logits = model.head(mixed).detach()
    at_logits = torch.where(logits == logits.amax(-1, keepdim=True), logits, 0.0) / 4
    at_mixed = linear_rule(mixed, model.head, at_logits)
    halves = weights[:, :, None] * v[None] * (at_mixed / (2 * mixed))[:, None]  # [T, S, D]
    at_weights, at_v = halves.sum(2), halves.sum(0)
    at_scores = scores * (at_weights - weights * at_weights.sum(1, keepdim=True))
    pairs = q[:, None] * k[None] * (at_scores / (4 * scores))[..., None]  # [T, S, D]; / 2 is a unit
    torch.testing.assert_close(found["head"][0], at_mixed)
    torch.testing.assert_close(found["v"][0], linear_rule(x[0], model.v, at_v))
    torch.testing.assert_close(found["q"][0], linear_rule(x[0], model.q, pairs.sum(1)))
    torch.testing.assert_close(found["k"][0], linear_rule(x[0], model.k, pairs.sum(0)))
    torch.testing.assert_close(found["v"].sum(), found["head"].sum() / 2)


def linear_rule(x: Tensor, layer: nn.Linear, relevance: Tensor) -> Tensor:
    """``R_i = sum_j x_i w_ij / z_j R_j`` for rows ``x``."""
    weight = layer.weight.detach()
    return torch.einsum("ti,ji,tj->ti", x, weight, relevance / (x @ weight.T))


def test_row_that_is_hidden_altogether_has_no_relevance() -> None:
    """As for padding: such a row is zero, not NaN."""
    mask = BANDED.clone()
    mask[2] = False
    model = Attention(lambda q, k, v: fused(q, k, v, attn_mask=mask)).double()

    found = relevances(model, torch.randn(2, 4, 3, dtype=torch.float64))

    assert all(bool(r.isfinite().all()) for r in found.values())
    assert bool((found["head"][:, 2] == 0).all())


def gpt_gelu(x: Tensor) -> Tensor:
    """A module of transformers, written as a product with a constant in it."""
    from transformers.activations import NewGELUActivation

    out: Tensor = NewGELUActivation()(x)
    return out


def changed_in_place(x: Tensor) -> Tensor:
    """The result is read through the argument."""
    F.silu(x, inplace=True)
    torch.sigmoid_(x)
    return x


CONSERVING: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": lambda x: x.sigmoid(),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "in place": changed_in_place,
    "softplus": nn.Softplus(),
    "relu6": nn.ReLU6(inplace=True),
    "elu": nn.ELU(),
    "square": lambda x: x**2,
    "product with itself": lambda x: x * x,
    "glu": lambda x: F.glu(torch.cat([x, -x.flip(-1)], -1)),
    "gate": lambda x: F.silu(x.flip(-1)) * x,
    "product in place": lambda x: torch.tanh(x).mul_(x),
    "three factors": lambda x: torch.einsum("ni,ni,ni->ni", x, x, x.flip(-1)),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "layer_norm": lambda x: F.layer_norm(x, (6,), torch.arange(6).to(x)),
    "rms_norm": lambda x: F.rms_norm(x, (6,), eps=0.1),
    "group_norm": lambda x: F.group_norm(x, 2, torch.arange(6).to(x)),
    "instance_norm": lambda x: F.instance_norm(x.view(1, -1, 6)).view(-1, 6),
    "normalize": F.normalize,
    "rsqrt": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.1),
    "power": lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 0.1).pow(-0.5),
    "reciprocal": lambda x: x * (1 / x.norm(dim=-1, keepdim=True)),
    "division": lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True),
}


class Between(nn.Module):
    """A function between two layers without biases."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(x)))
        return out


@pytest.mark.parametrize("function", CONSERVING.values(), ids=list(CONSERVING))
def test_relevance_is_conserved(function: Callable[[Tensor], Tensor]) -> None:
    """Through activations, gates and normalisation: all of it arrives, with many signs or one."""
    model, x = Between(function).double(), torch.randn(7, 4, dtype=torch.float64)

    found = relevances(model, x)

    explained = model(x).detach().amax(dim=1)
    torch.testing.assert_close(found["last"].sum(1), explained)
    torch.testing.assert_close(found["first"].sum(1), explained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", CONSERVING.values(), ids=list(CONSERVING))
def test_rules_do_not_change_values(function: Callable[[Tensor], Tensor]) -> None:
    """The forward pass within the rules computes what it does without."""
    model, x = Between(function), torch.randn(7, 4, requires_grad=True)
    expected = model(x)

    with propagating(model, 1e-6):
        found = model(x)

    torch.testing.assert_close(found, expected)


def test_rules_end_with_their_block() -> None:
    """Also after an exception: gradients are plain again."""
    x = torch.ones(1, requires_grad=True)

    with pytest.raises(ZeroDivisionError), propagating(nn.ReLU(), 1e-6):
        1 / 0  # noqa: B018

    (gradient,) = torch.autograd.grad(x * x, x)
    assert float(gradient) == 2


def test_activation_modules_of_transformers_are_one_function() -> None:
    """Their constants take no share."""
    from transformers.activations import NewGELUActivation

    model = nn.Sequential(nn.Linear(4, 6, bias=False), NewGELUActivation())
    model = model.append(nn.Linear(6, 3, bias=False)).double()
    x = torch.randn(7, 4, dtype=torch.float64)

    found = relevances(model, x)

    torch.testing.assert_close(found["0"].sum(1), model(x).detach().amax(dim=1))


def test_embedding_has_the_relevance_of_its_output() -> None:
    """Ids have none; a mean of rows and a layer without bias conserve it."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.fc(self.table(ids).mean(1))
            return out

    model, ids = Bag(), torch.randint(0, 9, (5, 6))

    found, shares = relevances(model, ids), contributions(model, [ids])

    torch.testing.assert_close(found["table"].sum((1, 2)), model(ids).detach().amax(1))
    expected = {name: float(r.abs().sum()) for name, r in found.items()}
    total = sum(expected.values())
    assert shares == pytest.approx({name: value / total for name, value in expected.items()})


@pytest.mark.parametrize("metric", ["squared-error", "cosine"])
def test_length_is_explained_where_there_are_no_classes(metric: str) -> None:
    """The relevance of a linear layer's input adds up to the length of its output."""
    model, x = nn.Linear(4, 3, bias=False), torch.randn(5, 4)

    found = relevances(model, x, metric=metric)

    torch.testing.assert_close(found[""].sum(1), model(x).detach().norm(dim=1))


def test_shares_add_up_to_one_whatever_the_batches() -> None:
    """The mean over examples, so that the division into batches does not matter."""
    model, x = Residual(), torch.randn(6, 2, 6, 6)

    once, split = contributions(model, [x]), contributions(model, list(x.split([1, 5])))

    assert sum(once.values()) == pytest.approx(1)
    assert split == pytest.approx(once, rel=1e-4)


def test_positions_are_averaged() -> None:
    """A sequence that repeats an example, and padding, change nothing."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.last(torch.tanh(self.first(x)))
            return out

    model, x = Tokens(), torch.randn(6, 1, 4)
    longer = torch.cat([x, x, torch.randn(6, 2, 4)], dim=1)
    mask = torch.tensor([1, 1, 0, 0]).expand(6, 4)

    once = contributions(model, [{"x": x, "attention_mask": torch.ones(6, 1)}])
    padded = contributions(model, [{"x": longer, "attention_mask": mask}])

    assert padded == pytest.approx(once, rel=1e-4)


def test_llama_written_out_and_fused() -> None:
    """Grouped heads, rotations, gates, tied weights; both ways to compute attention agree."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 12, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    ids, mask = torch.randint(0, 12, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    data = [{"input_ids": ids, "attention_mask": mask}]

    found = {}
    for kind in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation=kind))
        found[kind] = contributions(model, data)

    assert found["sdpa"] == pytest.approx(found["eager"], rel=1e-3)
    assert min(found["sdpa"].values()) > 0
    assert sum(found["sdpa"].values()) == pytest.approx(1)


def test_gpt2_runs() -> None:
    """Weights of transposed shape, and position embeddings that examples share."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_positions=8, n_embd=8, n_layer=1, n_head=2))

    found = contributions(model, [{"input_ids": torch.randint(0, 12, (3, 5))}])

    assert min(found.values()) > 0


class Encoder(nn.Module):
    """torch's own encoder layer."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(
            8, 2, 16, activation="gelu", batch_first=batch_first
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x if self.encoder.self_attn.batch_first else x.transpose(0, 1))
        out: Tensor = self.head(y if len(y) == len(x) else y.transpose(0, 1))
        return out


def test_encoder_layer_of_torch() -> None:
    """Its projections are layers; which axis is the batch does not matter."""
    batch_first, batch_second = Encoder(True), Encoder(False)
    batch_second.load_state_dict(batch_first.state_dict())
    x = torch.randn(4, 5, 8)

    found, other = (contributions(model, [x]) for model in (batch_first, batch_second))

    assert {"encoder.self_attn.q_proj", "encoder.linear2"} <= set(found)
    assert min(found.values()) > 0
    assert found == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "gamma"}, "rule is lrp or gradient; got 'gamma'"),
        ({"epsilon": 0.0}, "epsilon above 0; got 0.0"),
    ],
)
def test_option_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    """At once, not after the first batch."""
    with pytest.raises(InputError, match=message):
        Relevance(**options)
