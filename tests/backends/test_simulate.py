"""An assignment applied: the network that was searched, in a model of its own."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import MismatchError, ModelError
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.grid import make_grid
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.quantization.ranges import RANGE_METHODS

EMPTY = Assignment(())
MIXED = ("w4a8", "w2", "w8a8d", "fp8", "bf16", "w4g4a4s", "fp32", "w3tz", "fp4")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """A convolution with BatchNorm, attention, a linear head."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.mix = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.bn(self.conv(x)).relu().flatten(2).transpose(1, 2)
        mixed, _ = self.mix(tokens, tokens, tokens, need_weights=False)
        out: Tensor = self.head(mixed.mean(dim=1))
        return out


def make_net(**options: Any) -> Net:
    """With running statistics and biases as after training."""
    net = Net(**options)
    with torch.no_grad():
        assert net.bn.running_mean is not None
        assert net.bn.running_var is not None
        net.bn.running_mean.normal_()
        net.bn.running_var.uniform_(0.5, 2.0)
        net.mix.in_proj_bias.normal_()
    return net.eval()


class Searched:
    """A network as the estimators saw it, and an assignment for it."""

    def __init__(
        self, model: nn.Module, data: Any, texts: Sequence[str], fold: bool = True
    ) -> None:
        examples = Calibration.of(data)
        self.network = Network.of(model, examples, fold=fold)
        count = len(self.network.layers)
        candidates = [Precision.parse(texts[i % len(texts)]) for i in range(count)]
        ranges = ActivationRanges.calibrate(self.network, examples, candidates)
        self.quantizer = Quantizer(ranges)
        layers = tuple(
            AssignedLayer(
                layer.name,
                layer.kind,
                layer.weight_shape,
                candidate,
                ranges.of(layer.name, candidate.activation) if layer.kind != "embedding" else None,
            )
            for layer, candidate in zip(self.network.layers, candidates, strict=True)
        )
        self.assignment = Assignment(layers, self.network.ties, self.network.folded)

    def output(self, *args: Any, **kwargs: Any) -> Tensor:
        """Of the network in the assigned precisions, within the quantized context."""
        with quantized(self.network, self.assignment.precisions, self.quantizer), torch.no_grad():
            out = self.network.module(*args, **kwargs)
        found: Tensor = out if isinstance(out, Tensor) else out.logits
        return found


@pytest.fixture
def net() -> Net:
    """The network above."""
    return make_net()


@pytest.fixture
def x() -> Tensor:
    """Six images."""
    return torch.randn(6, 1, 4, 4)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("start", range(len(MIXED)))
def test_applied_model_is_the_searched_network(net: Net, x: Tensor, fold: bool, start: int) -> None:
    """Bit for bit what the estimators saw, for every kind of format at every layer."""
    searched = Searched(net, [x], MIXED[start:] + MIXED[:start], fold)

    model = mpq.quantize(net, searched.assignment)

    with torch.no_grad():
        found = model(x)
    assert torch.equal(found, searched.output(x))
    assert not torch.equal(found, net(x))


def test_applied_model_after_json_is_the_same(net: Net, x: Tensor) -> None:
    """The file holds all that matters."""
    searched = Searched(net, [x], MIXED)

    # Mixed formats break ties, which a file must not.
    untied = replace(searched.assignment, ties=())

    model = mpq.quantize(net, Assignment.from_json(untied.to_json()))

    with torch.no_grad():
        assert torch.equal(model(x), searched.output(x))


def test_network_is_itself_again_after_the_quantized_context(net: Net, x: Tensor) -> None:
    """Weights come back, hooks go, also when the block raises."""
    searched = Searched(net, [x], MIXED)
    with torch.no_grad():
        before = searched.network.module(x)
    weights = {id(p) for p in searched.network.module.parameters()}
    hooks = [list(m._forward_pre_hooks) for m in searched.network.module.modules()]

    precisions = searched.assignment.precisions
    with (
        pytest.raises(KeyError, match="inside"),
        quantized(searched.network, precisions, searched.quantizer),
    ):
        raise KeyError("inside")

    with torch.no_grad():
        assert torch.equal(searched.network.module(x), before)
    assert {id(p) for p in searched.network.module.parameters()} == weights
    assert [list(m._forward_pre_hooks) for m in searched.network.module.modules()] == hooks


def test_user_model_is_unchanged(net: Net, x: Tensor) -> None:
    """Its numbers, structure, flags and hooks."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modules = list(net.modules())

    mpq.quantize(net, Searched(net, [x], MIXED).assignment)

    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [id(m) for m in net.modules()] == [id(m) for m in modules]
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in modules)


def test_parameters_that_are_not_quantized_are_shared(net: Net, x: Tensor) -> None:
    """A layer at fp32 needs no second copy in memory."""
    model = mpq.quantize(net, Searched(net, [x], ["fp32"], fold=False).assignment)

    assert model.get_parameter("head.weight").data_ptr() == net.head.weight.data_ptr()
    assert model.get_parameter("conv.weight").data_ptr() == net.conv.weight.data_ptr()


def test_weights_lie_on_the_grid(net: Net, x: Tensor) -> None:
    """At 2 bits no channel has more than four different weights."""
    model = mpq.quantize(net, Searched(net, [x], ["w2"]).assignment)

    weight = model.get_parameter("head.weight")
    assert max(len(row.unique()) for row in weight) <= 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: mpq.quantize(m, EMPTY)])
def test_applied_model_can_be_copied(net: Net, x: Tensor, copied: Callable[..., nn.Module]) -> None:
    """A copy, rounded inputs included, says the same."""
    model = mpq.quantize(net, Searched(net, [x], MIXED).assignment)

    twin = copied(model)

    with torch.no_grad():
        assert torch.equal(twin(x), model(x))


def test_state_dict_holds_the_rounded_weights(net: Net, x: Tensor) -> None:
    """Loaded into another applied model, it makes that one the same."""
    searched = Searched(net, [x], MIXED)
    model = mpq.quantize(net, searched.assignment)
    other = mpq.quantize(make_net(), searched.assignment)

    other.load_state_dict(model.state_dict())

    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_bfloat16_model_stays_bfloat16(net: Net, x: Tensor) -> None:
    """Weights hold rounded numbers in the model's own dtype."""
    net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    searched = Searched(net, [x], MIXED)

    model = mpq.quantize(net, searched.assignment)

    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(model(x), searched.output(x))


def test_model_of_one_layer() -> None:
    """A layer without a name: the model itself."""
    model, x = nn.Linear(5, 3).eval(), torch.randn(4, 5)
    searched = Searched(model, [x], ["w4a8"])

    applied = mpq.quantize(model, searched.assignment)

    with torch.no_grad():
        assert torch.equal(applied(x), searched.output(x))


def test_layer_under_two_names() -> None:
    """A module that is used twice is quantized once, for both uses."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    x = torch.randn(3, 4)
    searched = Searched(model, [x], ["w2a8"])

    applied = mpq.quantize(model, searched.assignment)

    assert applied.get_submodule("0") is applied.get_submodule("2")
    with torch.no_grad():
        assert torch.equal(applied(x), searched.output(x))


def test_tied_weights_of_a_language_model() -> None:
    """Embedding and head share one parameter, and round it alike."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(0, 12, (2, 5))
    searched = Searched(model, [{"input_ids": ids}], ["w4a8"])

    applied = mpq.quantize(model, searched.assignment)

    with torch.no_grad():
        assert torch.equal(applied(input_ids=ids).logits, searched.output(input_ids=ids))
    embedding = applied.get_parameter("model.embed_tokens.weight")
    assert torch.equal(embedding, applied.get_parameter("lm_head.weight"))
    assert not torch.equal(embedding, model.get_input_embeddings().weight)


def mismatched() -> list[Any]:
    """Networks that an assignment for ``Net`` does not fit, and what is said."""

    def change(**parts: nn.Module) -> Net:
        net = make_net()
        for name, part in parts.items():
            net.add_module(name, part.eval())
        return net

    gone = make_net()
    del gone.head
    renamed = change(bn=nn.Identity())
    renamed.add_module("norm", nn.BatchNorm2d(8).eval())
    return [
        pytest.param(gone, "lacks 'head linear 3x8'", id="missing"),
        pytest.param(
            change(head=nn.Linear(8, 5)),
            "has 'head linear 5x8' instead of 'head linear 3x8'",
            id="shape",
        ),
        pytest.param(
            change(head=nn.Conv1d(8, 3, 1)), "has 'head conv1d 3x8x1' instead of", id="kind"
        ),
        pytest.param(change(head=nn.ReLU()), "lacks 'head linear 3x8'", id="no layer"),
        pytest.param(renamed, "BatchNorm 'bn'", id="norm is another module"),
        pytest.param(change(bn=nn.GroupNorm(2, 8)), "BatchNorm 'bn'", id="other norm"),
        pytest.param(nn.Linear(2, 2).eval(), "lacks 'conv conv2d 8x1x3x3'; lacks 'mix", id="all"),
    ]


@pytest.mark.parametrize(("other", "difference"), mismatched())
def test_assignment_of_another_network_is_refused(
    net: Net, x: Tensor, other: nn.Module, difference: str
) -> None:
    """The differences are named."""
    assignment = Searched(net, [x], ["w4"]).assignment

    with pytest.raises(MismatchError, match="belongs to another network.*" + difference):
        mpq.quantize(other, assignment)


def test_missing_norm_is_a_mismatch(net: Net, x: Tensor) -> None:
    """A BatchNorm that is not there at all."""
    assignment = Searched(net, [x], ["w4"]).assignment
    del net.bn

    with pytest.raises(MismatchError, match="lacks BatchNorm 'bn'"):
        mpq.quantize(net, assignment)


def test_norm_of_a_layer_that_is_not_there_is_a_mismatch(net: Net, x: Tensor) -> None:
    """A folded convolution may be excluded from the assignment, and still has to be there."""
    assignment = Searched(net, [x], ["w4"]).assignment

    with pytest.raises(MismatchError, match="gone"):
        mpq.quantize(net, replace(assignment, folded={"gone": "bn"}))


def test_many_differences_are_cut_short() -> None:
    """Five are named, the others counted."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(9))).eval()
    assignment = Searched(model, [torch.randn(2, 4)], ["w4"]).assignment

    with pytest.raises(MismatchError, match="lacks '5 linear 4x4' and 3 more"):
        mpq.quantize(nn.Sequential(nn.Linear(4, 4)).eval(), assignment)


def test_missing_range_is_an_error(net: Net, x: Tensor) -> None:
    """A static format needs its calibrated range, at the latest when the layer runs."""
    assignment = Searched(net, [x], ["w4a8"]).assignment
    layers = tuple(replace(layer, activation_range=None) for layer in assignment.layers)

    with pytest.raises(ModelError, match="layer 'conv' has no calibrated activation range"):
        mpq.quantize(net, replace(assignment, layers=layers))


def test_training_mode_is_refused(net: Net, x: Tensor) -> None:
    """BatchNorm cannot be folded while its statistics change."""
    assignment = Searched(net, [x], ["w4"]).assignment

    with pytest.raises(ModelError, match="training mode"):
        mpq.quantize(net.train(), assignment)


def test_ranges_see_every_column() -> None:
    """Where the spread depends on the column, the range serves as well as that of all numbers."""
    x = torch.randn(16, 64, 512) * torch.linspace(0.1, 3, 512)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(512, 3)).eval()
    network, candidate = Network.of(model, [x]), Precision.parse("w8a4")

    found = ActivationRanges.calibrate(network, Calibration([x]), [candidate])

    rows, number = x.reshape(1, -1), candidate.activation.number
    low, high = RANGE_METHODS.build("mse").ends(rows, number, False)
    calibrated = found.of("1", candidate.activation)
    assert calibrated is not None
    ends = torch.tensor([calibrated.low]), torch.tensor([calibrated.high])
    best = (make_grid(number, False, low, high).round(rows) - rows).square().sum()
    error = (make_grid(number, False, *ends).round(rows) - rows).square().sum()
    assert float(error) <= 1.1 * float(best)


@pytest.mark.parametrize(
    "again", [lambda m: m, copy.deepcopy, nn.Sequential], ids=["itself", "copy", "inside"]
)
def test_a_quantized_network_is_not_searched_as_a_float_one(
    net: Net, x: Tensor, again: Callable[[nn.Module], nn.Module]
) -> None:
    """What was rounded is named, and can be left out; the user's model is as it was."""
    task = mpq.Task(net, [x], [x], candidates=["w4", "fp32"], rules=mpq.Rules(fix={"head": "fp32"}))
    found = mpq.search(task, {"effective_bits": "0.9x:fp32"}, sensitivity="weight-error")
    rounded = [n for n, p in found.assignment.precisions.items() if str(p) != "fp32"]
    model = again(mpq.quantize(net, found.assignment)).eval()

    with pytest.raises(
        ModelError, match=r"is quantized already \(w4a32, as mpq.quantize made it\)"
    ):
        Network.of(model, [x])
    kept = Network.of(model, [x], exclude=[f"*{name}" for name in rounded])

    assert [layer.name.removeprefix("0.") for layer in kept.layers if "head" in layer.name] == [
        "head"
    ]
    assert Network.of(net, [x]).layers


def test_a_quantized_network_is_not_quantized_again(net: Net, x: Tensor) -> None:
    """Rounded twice, it would be neither of the two."""
    task = mpq.Task(net, [x], [x], candidates=["w4"])
    found = mpq.search(task, {"effective_bits": 32}, sensitivity="weight-error").assignment

    with pytest.raises(ModelError, match="quantized already"):
        mpq.quantize(mpq.quantize(net, found), found)
