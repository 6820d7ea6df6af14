"""Second moments against the layers themselves: what an error of the weight does to the output."""

import copy
from collections.abc import Sequence
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from mpq import Calibration, Precision
from mpq.errors import GradientError, InputError
from mpq.network.examples import Batch
from mpq.network.metric import SquaredError
from mpq.network.network import Network
from mpq.network.weight_layout import layout_of
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.quantizer import Quantizer
from mpq.rounding.diagonal_blocks import ALIGNMENT, blocks, moment_shape
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes import input_columns
from mpq.sensitivity.passes.gram import Gram
from mpq.sensitivity.passes.moment_mixing import OVER, SecondMoments
from mpq.sensitivity.passes.probes import TEMPERATURE, Probes
from mpq.sensitivity.passes.second_moments import (
    PartialMoments,
    second_moments,
)
from tests.sensitivity.functions import Function
from tests.sensitivity.passes.convolutions import CONVOLUTIONS


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def flat(model: Any, x: Tensor) -> Tensor:
    """Logits from what one layer gives, whose gradients differ from position to position."""
    found: Tensor = model.layer(x).tanh().flatten(1)
    return found


def asked(model: nn.Module, batches: Sequence[Any], data: Sequence[Any] = ()) -> Estimation:
    """The question of a network; found on some batches, collected on others if there are any."""
    network = Network.of(model.eval(), Calibration(list(batches)))
    quantizer = Quantizer(ActivationRanges({}))
    examples = network.examples(Calibration(list(data or batches)))
    return Estimation(network, examples, quantizer, (Precision.parse("w4"),))


def moments(model: nn.Module, *batches: Tensor, **options: Any) -> SecondMoments:
    """Of a model's layers."""
    return second_moments(asked(model, batches), **options)


def form(moment: Tensor, rows: Tensor) -> Tensor:
    """``[G]``, the sum of each group's rows' ``d^T H d``."""
    grouped = rows.reshape(len(moment), -1, rows.shape[1]).double()
    return torch.einsum("gok,gkj,goj->g", grouped, moment.double(), grouped)


def changed(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A random change of the weight ``[O, K]``, and of the output, in float64."""
    layer = copy.deepcopy(layer).double()
    change = torch.randn_like(layer.weight)
    other = {"weight": layer.weight + change}
    with torch.no_grad():
        moved = functional_call(layer, other, (x.double(),)) - layer(x.double())
    return layout_of(layer).to_rows(change), moved


def by_group(change: Tensor, layer: Any) -> Tensor:
    """``[N, G, O / G, P]`` of a layer's output."""
    if isinstance(layer, nn.Linear) or not hasattr(layer, "groups"):
        return change.reshape(len(change), -1, change.shape[-1]).transpose(1, 2).unsqueeze(1)
    return change.reshape(len(change), layer.groups, -1, change[0, 0].numel())


def hugging_face(inputs: int, outputs: int) -> nn.Module:
    """A linear layer with its weight stored as ``[I, O]``, with large numbers."""
    from transformers.pytorch_utils import Conv1D

    layer: nn.Module = Conv1D(outputs, inputs)
    layer.weight = nn.Parameter(torch.randn(inputs, outputs))
    return layer


LINEAR: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 4), (5,)),
    (nn.Linear(5, 4, bias=False), (3, 5)),
    (nn.Linear(1, 3), (2, 3, 1)),
    (hugging_face(5, 4), (3, 5)),
]


class Padded(nn.Conv2d):
    """As wide as its input over the stride, whatever the kernel: zeros behind and below."""

    def forward(self, x: Tensor) -> Tensor:
        """One column and row more than torch would add, and no padding of its own."""
        padded = nn.functional.pad(x, (1, 2, 0, 1))
        return nn.functional.conv2d(
            padded, self.weight, self.bias, stride=self.stride, groups=self.groups
        )


class Scaled(nn.Linear):
    """Reads squares."""

    def forward(self, x: Tensor) -> Tensor:
        """By torch's operator."""
        return nn.functional.linear(x.square(), self.weight, bias=self.bias)


OWN: list[tuple[nn.Module, tuple[int, ...]]] = [
    (Padded(4, 6, 3, stride=2, padding=5, groups=2), (4, 6, 7)),
    (Padded(3, 5, (2, 3), dilation=2, padding_mode="reflect", padding=1), (3, 6, 6)),
    (Scaled(5, 4), (3, 5)),
]
"""Forwards of their own, which hand on what they make of their input to torch's operator."""
KINDS = [*LINEAR, *CONVOLUTIONS, *OWN]
kinds = pytest.mark.parametrize(("layer", "shape"), KINDS, ids=str)
even = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@kinds
@even
def test_the_plain_form_is_the_change_of_the_output(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    """Mean over examples of the squared change, whatever the layer: the defining property."""
    x = torch.randn(6, *shape)

    found = moments(Function(flat, layer=layer), x, guidance=0).values["layer"]

    rows, change = changed(layer, x)
    expected = by_group(change, layer).square().sum(dim=(0, 2, 3)) / len(x)
    torch.testing.assert_close(form(found, rows), expected, rtol=1e-4, atol=1e-6)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.mT)


@kinds
@even
def test_the_guided_form_weighs_positions_by_squared_gradients(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    """Up to a factor for each group, which makes its trace that of the plain moment."""
    x, model = torch.randn(6, *shape), Function(flat, layer=layer)
    on = asked(model, [x])

    found = second_moments(on, guidance=1, seed=3).values["layer"]

    y = layer(x).detach().requires_grad_()
    outputs = y.tanh().flatten(1)
    probes = Probes(on.network.metric, TEMPERATURE, 3)
    u = probes.draw(Batch((x,)), None, 0, outputs.detach().unsqueeze(1))
    (g,) = torch.autograd.grad(outputs, y, u.squeeze(1))
    weights = by_group(g.double(), layer).square().mean(dim=2, keepdim=True)
    factors = []
    for _ in range(3):
        rows, change = changed(layer, x)
        expected = (weights * by_group(change, layer).square()).sum(dim=(0, 2, 3)) / len(x)
        factors.append(form(found, rows) / expected)
    torch.testing.assert_close(factors[1], factors[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(factors[2], factors[0], rtol=1e-3, atol=0)
    plain = second_moments(on, guidance=0).values["layer"]
    torch.testing.assert_close(trace(found), trace(plain))


def trace(moment: Tensor) -> Tensor:
    """``[G]``."""
    return moment.diagonal(dim1=1, dim2=2).sum(dim=1)


@pytest.mark.parametrize("guidance", [0.25, 0.5])
def test_a_mix_lies_between_both(guidance: float) -> None:
    """In equal traces, so that it is linear in the guidance."""
    on = asked(Function(flat, layer=nn.Conv2d(4, 6, 3, groups=2)), [torch.randn(5, 4, 6, 6)])

    found = second_moments(on, guidance=guidance).values["layer"]

    plain, guided = (second_moments(on, guidance=g).values["layer"] for g in (0, 1))
    torch.testing.assert_close(found, (1 - guidance) * plain + guidance * guided)


@pytest.mark.parametrize("work", [1, 200, 1000])
def test_pieces_of_any_size_give_the_same(work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some examples at a time, some lines of one example, some tokens."""
    layers = {"a": nn.Conv2d(2, 4, 3, padding=1), "b": nn.ConvTranspose2d(4, 2, 3, stride=2)}
    model = Function(
        lambda m, x: m.c(m.b(m.a(x)).flatten(2)).flatten(1), **layers, c=nn.Linear(169, 2)
    )
    on = asked(model, [torch.randn(4, 2, 6, 6)])
    expected = second_moments(on).values

    monkeypatch.setattr(input_columns, "_WORK_ELEMENTS", work)
    found = second_moments(on).values

    for name, moment in expected.items():
        torch.testing.assert_close(found[name], moment)


@pytest.mark.parametrize("positions", [0, 1])
@pytest.mark.parametrize("guidance", [0, 0.5])
def test_batches_of_any_size_give_the_same(positions: int, guidance: float) -> None:
    """One batch or five, of different sizes, looking at all positions or at some."""
    x = torch.randn(24, 2, 7, 7)
    model = Function(
        lambda m, x: m.b(m.a(x).relu().mean(dim=(2, 3))), a=nn.Conv2d(2, 4, 3), b=nn.Linear(4, 3)
    )
    options: dict[str, Any] = {"positions": positions, "guidance": guidance}

    one = moments(model, x, **options).values
    five = moments(model, *x.split([8, 1, 5, 8, 2]), **options).values

    assert list(one) == list(five) == ["a", "b"]
    for name, moment in one.items():
        torch.testing.assert_close(five[name], moment)


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(2, 4, 3, 2, groups=2)])
@pytest.mark.parametrize("guidance", [0, 1])
def test_a_lattice_looks_at_every_position_equally_often(layer: nn.Module, guidance: float) -> None:
    """Of as many equal examples as it has steps, it sees exactly what there is."""
    one, steps = torch.randn(1, 2, 4, 4), 5
    positions = layer(one)[0, 0].numel()
    inputs = layout_of(layer).to_rows(layer.weight).shape[1]  # type: ignore[arg-type]
    x = one.expand(inputs * steps, -1, -1, -1).contiguous()
    # The gradient is equal, too: that of a squared length.
    model = Function(lambda m, x: m.layer(x).square().flatten(1).sum(1, keepdim=True), layer=layer)
    network = Network.of(model.eval(), [x], metric=SquaredError())
    on = Estimation(network, Calibration([x]), Quantizer(ActivationRanges({})), ())

    all_of_them = second_moments(on, positions=0, guidance=guidance).values["layer"]
    some = second_moments(on, positions=positions, guidance=guidance).values["layer"]

    torch.testing.assert_close(some, all_of_them)


@pytest.mark.parametrize("every", [1, 3, 7, 50])
def test_as_many_examples_as_steps_have_every_position_once(every: int) -> None:
    """Wherever they begin."""
    lattice = input_columns.Lattice(every, first=4).after(7)

    index = lattice.index((every, 3, 5), torch.device("cpu"))

    places = sorted(zip(index[1].tolist(), index[2].tolist(), strict=True))
    assert places == [(line, column) for line in range(3) for column in range(5)]


def test_thousands_of_positions_are_thinned() -> None:
    """Close to the moment of all positions, in a share of the work."""
    x, layer = torch.randn(64, 2, 16, 16), nn.Conv2d(2, 3, 3)
    on = asked(Function(flat, layer=layer), [x])

    all_of_them = second_moments(on, positions=0).values["layer"]
    some = second_moments(on, positions=128).values["layer"]

    assert not torch.equal(some, all_of_them)
    error = torch.linalg.matrix_norm(some - all_of_them) / torch.linalg.matrix_norm(all_of_them)
    assert float(error) < 0.15


def test_calls_of_a_layer_add_up() -> None:
    """A layer that is called twice has the moments of both inputs."""
    layer, x = nn.Linear(4, 4), torch.randn(6, 4)

    found = moments(Function(lambda m, x: m.a(m.a(x).tanh()), a=layer), x, guidance=0)

    hidden = layer(x).tanh().detach()
    expected = (x.T @ x + hidden.T @ hidden) / len(x)
    torch.testing.assert_close(found.values["a"][0], expected)


@pytest.mark.parametrize("guidance", [0, 0.5])
def test_every_step_of_a_recurrent_layer_counts(guidance: float) -> None:
    """Plain, the states add up; guided, the trace is the same."""
    rnn, x = nn.RNN(3, 4, batch_first=True), torch.randn(5, 6, 3)
    model = Function(lambda m, x: m.rnn(x)[0][:, -1], rnn=rnn)

    found = moments(model, x, guidance=guidance).values

    states = torch.cat([torch.zeros(5, 1, 4), rnn(x)[0][:, :-1].detach()], dim=1).flatten(0, 1)
    expected = states.T @ states / 5
    torch.testing.assert_close(trace(found["rnn.hh_l0"]), expected.trace()[None])
    if not guidance:
        torch.testing.assert_close(found["rnn.hh_l0"][0], expected)


def test_an_output_size_of_the_call() -> None:
    """A transposed convolution can be asked for more lines than it gives by itself."""
    layer, x = nn.ConvTranspose1d(2, 3, 3, stride=2), torch.randn(4, 2, 5)
    model = Function(lambda m, x: m.layer(x, output_size=[12]).flatten(1), layer=layer)

    found = moments(model, x, guidance=0).values

    layer = layer.double()
    change = torch.randn_like(layer.weight)
    moved = functional_call(layer, {"weight": change}, (x.double(),), {"output_size": [12]})
    moved = moved - layer.get_parameter("bias")[:, None]
    expected = moved.square().sum()[None] / len(x)
    rows = layout_of(layer).to_rows(change)
    torch.testing.assert_close(form(found["layer"], rows), expected.detach(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("sizes", [[12], [5, 4, 3]])
def test_what_all_examples_share_counts_for_each(sizes: list[int]) -> None:
    """A layer that reads one row, added to what every example has, changes every output."""
    x, row, layer = torch.randn(12, 3), torch.randn(1, 4), nn.Linear(4, 3)
    model = Function(lambda m, x: m.own(x) + m.shared(row), own=nn.Linear(3, 3), shared=layer)

    plain = moments(model, *x.split(sizes), guidance=0).values["shared"]
    mixed = moments(model, *x.split(sizes)).values["shared"]

    torch.testing.assert_close(plain[0], row.T @ row)
    torch.testing.assert_close(mixed, plain)  # there is one direction only


class Experts(nn.Module):
    """A router that sends every token to one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        flat = x.reshape(-1, 3)
        found = torch.zeros(len(flat), 4)
        for number, expert in enumerate(self.experts):
            index = ((flat[:, 0] > 1).long() == number).nonzero().flatten()
            found = found.index_add(0, index, expert(flat[index]))
        logits: Tensor = self.head(found.reshape(*x.shape[:-1], 4).tanh())
        return logits


@pytest.mark.parametrize("sizes", [[20], [9, 2, 9]])
@pytest.mark.parametrize("guidance", [0, 0.5])
def test_an_expert_reads_what_it_is_sent(sizes: list[int], guidance: float) -> None:
    """All its tokens, over all examples, also those that do not reach it."""
    x = torch.randn(20, 3)

    found = moments(Experts(), *x.split(sizes), guidance=guidance).values["experts.1"]

    sent = x[x[:, 0] > 1]
    expected = sent.T @ sent / len(x)
    assert 0 < len(sent) < 10
    torch.testing.assert_close(trace(found), expected.trace()[None])
    if not guidance:
        torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("guidance", [0, 0.5])
def test_an_expert_that_is_sent_one_token_reads_one(guidance: float) -> None:
    """And not one for every example, as a layer does that all of them share."""
    x = torch.cat([torch.randn(11, 3) - 4, torch.tensor([[2.0, 1.0, -1.0]])])

    found = moments(Experts(), x, guidance=guidance).values["experts.1"]

    torch.testing.assert_close(trace(found), x[-1].square().sum()[None] / 12)


def test_several_images_of_an_example_are_all_looked_at() -> None:
    """A lattice of positions is laid over examples, which these are not."""
    model = Function(
        lambda m, x: m.layer(x.flatten(0, 1)).tanh().reshape(len(x), -1),
        layer=nn.Conv2d(2, 3, 3),
    )
    on = asked(model, [torch.randn(4, 3, 2, 8, 8)])

    every, some = (second_moments(on, positions=p).values["layer"] for p in (0, 1))

    assert torch.equal(every, some)


class Tied(nn.Module):
    """A language model whose head has the embedding's parameter."""

    def __init__(self, is_tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 7, bias=False)
        tensor = self.table.weight
        self.head.weight = tensor if is_tied else nn.Parameter(tensor.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Logits."""
        found: Tensor = self.head(torch.tanh(self.body(self.table(ids))))
        return found


def test_a_tied_embedding_adds_the_identity() -> None:
    """Plain, as often as a row is looked up; guided, by the squared gradients of what it gives."""
    ids = torch.randint(0, 7, (4, 5))
    on = asked(Tied(), [ids])

    plain, guided = (second_moments(on, guidance=g).values for g in (0, 1))

    assert plain["table"] is plain["head"]
    model = Tied()
    rows = model.table(ids).detach().requires_grad_()
    hidden = torch.tanh(model.body(rows))
    logits = model.head(hidden)
    flat = hidden.detach().flatten(0, 1)
    by_use = flat.T @ flat / 4 + 5 / 7 * torch.eye(3)
    torch.testing.assert_close(plain["head"][0], by_use)
    u = Probes(on.network.metric, TEMPERATURE, 0).draw(Batch((ids,)), None, 0, logits.detach())
    (g,) = torch.autograd.grad(logits, rows, u)
    sizes = u.square().mean(dim=-1).flatten()
    by_loss = (flat.T * sizes) @ flat / 4 + g.square().mean() * 5 / 7 * torch.eye(3)
    expected = by_loss * by_use.trace() / by_loss.trace()
    torch.testing.assert_close(guided["head"][0], expected)


def test_a_function_that_uses_the_embedding_is_tied_as_well() -> None:
    """``F.linear(h, embed.weight)`` is the same as a head with the parameter."""
    ids = torch.randint(0, 7, (4, 5))
    model = Tied()
    del model.head
    model.head = lambda h: nn.functional.linear(h, model.table.weight)  # type: ignore[assignment]

    found = moments(model, ids).values

    expected = moments(Tied(), ids).values
    torch.testing.assert_close(found["table"], expected["table"])
    torch.testing.assert_close(found["table.linear"], expected["table"])


@pytest.mark.parametrize("guidance", [0, 1])
def test_layers_that_share_a_weight_have_the_sum(guidance: float) -> None:
    """As if one layer were called twice."""
    a, x = nn.Linear(4, 4), torch.randn(6, 4)
    b = nn.Linear(4, 4)
    b.weight, b.bias = a.weight, a.bias

    found = moments(Function(lambda m, x: m.b(m.a(x).tanh()), a=a, b=b), x, guidance=guidance)

    expected = moments(Function(lambda m, x: m.a(m.a(x).tanh()), a=a), x, guidance=guidance)
    torch.testing.assert_close(found.values["a"], expected.values["a"])
    assert found.values["b"] is found.values["a"]


def test_a_weight_that_is_read_in_other_groups() -> None:
    """Its rows meet other inputs in each of two groups, and the same ones in one."""
    a, b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
    b.weight = a.weight
    model = Function(lambda m, x: m.b(m.a(x).tanh()).flatten(1), a=a, b=b)

    found = moments(model, torch.randn(4, 2, 5, 5))

    assert list(found.values) == ["a"]
    assert found.missing == {
        "b": "layer 'b' shares its weight with 'a', whose rows lie in other groups (1, not 2)"
    }


def test_a_weight_that_is_read_in_other_rows() -> None:
    """The network stores it twice, so that each has the moment of its own."""
    a, b = nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 3, 3, padding=1)
    b.weight = a.weight
    x = torch.randn(4, 3, 5, 5)

    found = moments(Function(lambda m, x: m.b(m.a(x).tanh()).flatten(1), a=a, b=b), x, guidance=0)

    rows, change = changed(b, a(x).tanh().detach())
    expected = change.square().sum()[None] / len(x)
    torch.testing.assert_close(form(found.values["b"], rows), expected, rtol=1e-4, atol=0)


class Own(nn.Linear):
    """A layer that does more with its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the product."""
        return nn.functional.linear(x, self.weight * 2, self.bias)


def test_layers_without_a_moment_say_why() -> None:
    """An embedding, a forward of its own; the others have theirs."""
    layers = {
        "table": nn.Embedding(9, 4),
        "own": Own(4, 4),
        "a": nn.Linear(12, 3),
    }
    model = Function(lambda m, x: m.a(m.own(m.table(x)).flatten(1)), **layers)

    found = moments(model, torch.randint(0, 9, (5, 3)))

    assert list(found.values) == ["a"]
    assert "layer 'table' is an embedding" in found.missing["table"]
    assert "layer 'own' has a forward of its own" in found.missing["own"]


@kinds
@even
@pytest.mark.parametrize("guidance", [0, 0.5])
def test_above_a_size_moments_are_the_blocks_along_the_diagonal(
    layer: nn.Module, shape: tuple[int, ...], guidance: float
) -> None:
    """Up to a factor of each group where guided: the traces are those of the whole."""
    on = asked(Function(flat, layer=layer), [torch.randn(6, *shape)])
    whole = second_moments(on, guidance=guidance).values["layer"]
    groups, inputs, _ = whole.shape
    dense_inputs = max(1, ceil((groups * inputs * (inputs / 3)) ** 0.5))

    found = second_moments(on, guidance=guidance, dense_inputs=dense_inputs).values["layer"]

    assert found.shape == moment_shape(groups, inputs, dense_inputs)
    assert found.numel() <= max(dense_inputs**2, groups * inputs)
    for part, block in blocks(found):
        torch.testing.assert_close(block, whole[:, part, part], rtol=1e-4, atol=1e-5)


def test_a_tied_embedding_adds_to_the_blocks() -> None:
    """The identity's, as often as rows are looked up."""
    model = Tied()
    on = asked(model, [torch.randint(0, 7, (5, 3))])
    whole = second_moments(on).values["head"]

    found = second_moments(on, dense_inputs=2).values["head"]

    assert found.shape[-1] < whole.shape[-1]
    for part, block in blocks(found):
        torch.testing.assert_close(block, whole[:, part, part])


@given(st.integers(1, 8), st.integers(1, 10**6), st.integers(1, 2**15))
def test_blocks_take_no_more_memory_than_a_whole_matrix(
    groups: int, inputs: int, dense_inputs: int
) -> None:
    """As few as that allows, and of whole groups where they are long enough."""
    _, _, size = moment_shape(groups, inputs, dense_inputs)

    assert groups * inputs * size <= max(dense_inputs**2, groups * inputs)
    if groups * inputs**2 <= dense_inputs**2:
        assert size == inputs
    elif size > ALIGNMENT:
        assert size % ALIGNMENT == 0
        more = ceil(inputs / size) - 1
        assert groups * inputs * (ceil(inputs / more) + ALIGNMENT) > dense_inputs**2


@pytest.mark.parametrize("guidance", [0, 0.5])
def test_a_layer_that_is_not_reached(guidance: float) -> None:
    """An expert that none of these examples is sent to."""
    x = torch.randn(20, 3)
    on = asked(Experts(), [x], [x[x[:, 0] < 1]])

    found = second_moments(on, guidance=guidance)

    assert found.missing == {"experts.1": "layer 'experts.1' is reached by no example"}
    assert sorted(found.values) == ["experts.0", "head"]


def test_without_a_gradient_the_moment_is_plain() -> None:
    """Of a layer whose output is rounded, and of one of which only one call has a gradient."""
    layers = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)}
    model = Function(lambda m, x: m.c(x) + m.a(x).round() + m.b(m.b(x).detach().tanh()), **layers)
    on = asked(model, [torch.randn(8, 3)])

    collected = second_moments(on, guidance=0.5)
    found = collected.values

    plain = second_moments(on, guidance=0).values
    assert collected.unguided == {"a": "no gradient reaches it"}
    torch.testing.assert_close(found["a"], plain["a"])
    torch.testing.assert_close(trace(found["b"]), trace(plain["b"]))
    assert not torch.allclose(found["c"], plain["c"])


def test_a_layer_that_reads_numbers_without_a_finite_square_has_no_moment() -> None:
    """It alone: the next one reads small numbers."""
    model = Function(
        lambda m, x: m.b(m.a(x * 1e30) * 1e-30), a=nn.Linear(3, 3, bias=False), b=nn.Linear(3, 3)
    )

    found = moments(model, torch.randn(8, 3))

    assert list(found.values) == ["b"]
    assert found.missing == {"a": f"squares of what layer 'a' reads {OVER}"}


def test_where_gradients_have_no_finite_square_what_is_read_counts_alone() -> None:
    """And the reason says so."""
    model = Function(
        lambda m, x: m.b(m.a(x) * 1e-25) * 1e25, a=nn.Linear(3, 3), b=nn.Linear(3, 3, bias=False)
    )
    x = torch.randn(8, 3)

    found, plain = moments(model, x), moments(model, x, guidance=0)

    assert list(found.unguided) == ["b"]
    assert OVER in found.unguided["b"]
    torch.testing.assert_close(found.values["b"], plain.values["b"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_of_any_width_are_added_up_in_float32(dtype: torch.dtype) -> None:
    """A sum of thousands of squares would stand still in bfloat16."""
    x = torch.randn(4000, 4).to(dtype)
    model = Function(lambda m, x: m.a(x), a=nn.Linear(4, 3)).to(dtype)

    found = moments(model, x, guidance=0).values["a"]

    assert found.dtype == torch.float32
    expected = x.double().T @ x.double() / len(x)
    torch.testing.assert_close(found[0], expected.float(), rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_and_the_model_is_left_as_found() -> None:
    """To the last bit; parameters, gradients, hooks and random state are untouched."""
    model = Function(lambda m, x: m.b(m.a(x).relu()), a=nn.Linear(5, 4), b=nn.Linear(4, 3))
    on = asked(model, [torch.randn(9, 5)])
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()

    first, again, other = (second_moments(on, seed=s).values["a"] for s in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for module in (*model.modules(), on.network.layer_module("a"), on.network.layer_module("b")):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert all(p.grad is None for p in module.parameters())


def test_a_network_without_gradients_has_plain_moments() -> None:
    """Without guidance nothing is differentiated."""

    def forward(model: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.a(x)
        return found

    on = asked(Function(forward, a=nn.Linear(4, 3)), [torch.randn(5, 4)])

    assert list(second_moments(on, guidance=0).values) == ["a"]
    with pytest.raises(GradientError, match="layer 'a' runs without gradients"):
        second_moments(on)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 1.5}, "guidance is a share from 0 to 1; got 1.5"),
        ({"guidance": float("nan")}, "guidance is a share"),
        ({"dense_inputs": 0}, "dense_inputs >= 1"),
        ({"positions": -1}, "got 16384 and -1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    """Refused before anything runs."""
    with pytest.raises(InputError, match=message):
        moments(nn.Linear(4, 3), torch.randn(5, 4), **options)


@pytest.mark.parametrize("inputs", [1, 95, 192, 300, 1000])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("share", [1, 3])
def test_a_gram_matrix_is_the_sum_of_products(inputs: int, groups: int, share: int) -> None:
    """In as many tiles as it takes, of as many blocks as there are."""
    shape = (groups, inputs, ceil(inputs / share))
    gram, columns = Gram(shape, torch.device("cpu")), torch.randn(2, groups, inputs, 7)

    gram.add(columns[0])
    gram.add(columns[1], 3)

    expected = columns[0] @ columns[0].mT + 3 * columns[1] @ columns[1].mT
    for part, block in blocks(gram.matrix()):
        torch.testing.assert_close(block, expected[:, part, part], rtol=1e-4, atol=1e-4)
        assert torch.equal(block, block.mT)


def test_parts_add_up_to_the_moments_of_their_examples() -> None:
    """Also asked for twice, and of the first parts, whose probes are the same by themselves."""
    model = Function(lambda m, x: flat(m, x), layer=nn.Linear(5, 4))
    first, second, third = (torch.randn(n, 5) for n in (3, 2, 4))
    on = asked(model, [torch.cat([first, second, third])])
    found = PartialMoments.of(on, [on.data.between(*ends) for ends in ((0, 3), (3, 5), (5, 9))])
    begun = second_moments(asked(model, [first, second])).values["layer"]
    for _ in range(2):
        torch.testing.assert_close(found.total([0, 1]).values["layer"], begun)
    whole = found.total([0, 1, 2], is_last=True).values["layer"]
    torch.testing.assert_close(whole, second_moments(on).values["layer"])
