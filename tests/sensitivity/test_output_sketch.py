"""The output sketch, against the dense curvature of small networks."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import mpq
from mpq.errors import InputError, ModelError
from mpq.network import divergence, metric
from mpq.network.examples import Calibration
from mpq.network.metric import KL, CosineDistance, OutputMetric, SquaredError
from mpq.network.network import Network
from mpq.problem.interactions import Interactions
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity import Estimation, OutputSketch
from mpq.sensitivity import output_sketch as module_under_test
from mpq.sensitivity.passes import factor_rows, weight_changes
from mpq.workflows.setup import Prepared
from tests.sensitivity.functions import Function

Array = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def parse(*texts: str) -> tuple[Precision, ...]:
    """Precisions from their spelling."""
    return tuple(map(Precision.parse, texts))


class Tool:
    """A network with its data and quantizer."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        candidates: Sequence[Precision],
        metric: OutputMetric = KL,
    ) -> None:
        self.data = Calibration.of(data)
        self.candidates = candidates
        self.network = Network.of(model.eval(), self.data, metric=metric)
        ranges = ActivationRanges.calibrate(self.network, self.data, candidates)
        self.quantizer = Quantizer(ranges)

    def table(self, **options: Any) -> Array:
        """``[L, B]`` of the sketch."""
        estimator = OutputSketch(
            **{"num_probes": 1, "temperature": 1.0, "interactions": False, **options}
        )
        found = estimator.estimate(
            Estimation(self.network, self.data, self.quantizer, self.candidates)
        )
        return found.table.values

    def factor(self, **options: Any) -> Interactions:
        """The interactions of the sketch."""
        estimator = OutputSketch(
            **{"num_probes": 1, "temperature": 1.0, "shrinkage": 0.0, **options}
        )
        found = estimator.estimate(
            Estimation(self.network, self.data, self.quantizer, self.candidates)
        )
        assert found.interactions is not None
        return found.interactions

    def mean_table(self, seeds: int, **options: Any) -> Array:
        """Mean table over seeds."""
        return np.asarray(np.mean([self.table(seed=s, **options) for s in range(seeds)], axis=0))

    def weight_change(self, name: str, candidate: Precision) -> Tensor:
        """What a precision does to a weight."""
        layer_module = self.network.layer_module(name)
        weight = self.quantizer.weight(name, layer_module, candidate.weight)
        return weight - self.network.weight(name)


def fisher(logits: Tensor) -> Tensor:
    """``diag(p) - p p^T`` of every row."""
    p = logits.double().softmax(dim=-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


def half_quadratic(logits: Tensor, change: Tensor) -> float:
    """``mean_n 1/2 df^T (diag p - p p^T) df`` for ``[N, C]``."""
    change = change.double()
    return float(torch.einsum("nc,ncd,nd->n", change, fisher(logits), change).mean() / 2)


def all_signs(monkeypatch: pytest.MonkeyPatch, classes: int) -> int:
    """Makes every probe of a batch the next sign vector; returns how many there are."""
    vectors = itertools.cycle(itertools.product((-1.0, 1.0), repeat=classes))

    def probe(logits: Tensor, weights: Tensor, _: torch.Generator, temperature: float) -> Tensor:
        p = (logits / temperature).detach().double().softmax(dim=-1)
        root = torch.diag_embed(p.sqrt()) - p[..., :, None] * p.sqrt()[..., None, :]
        u = root @ torch.tensor(next(vectors), dtype=torch.float64)
        return (u * weights.sqrt()[..., None]).to(logits.dtype)

    monkeypatch.setattr(metric, "fisher_probe", probe)
    return int(2**classes)


def every_sign(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """Draws the next signs of an output's numbers for all examples, twice: plain, softened."""
    vectors = itertools.cycle(
        vector for vector in itertools.product((-1.0, 1.0), repeat=numbers) for _ in range(2)
    )

    def signs(like: Tensor, _: torch.Generator) -> Tensor:
        drawn = torch.tensor(next(vectors), dtype=torch.float64)
        return drawn.reshape(like.shape[1:]).expand(like.shape)

    for module in (metric, divergence):
        monkeypatch.setattr(module, "random_signs", signs)


def curvature(metric: OutputMetric, output: Tensor) -> Tensor:
    """Hessian ``[C, C]`` of the divergence from an output ``[C]``, at that output."""

    def apart(other: Tensor) -> Tensor:
        return metric.divergence(output.expand(1, 1, -1), other.expand(1, 1, -1)).sum()

    return torch.autograd.functional.hessian(apart, output)  # type: ignore[no-any-return]


def test_all_sign_vectors_give_the_quadratic_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One linear layer, three classes: the mean over eight probes is the closed form."""
    x, candidates = torch.randn(7, 5), parse("w2", "w4", "fp32", "w8a4")
    model = nn.Linear(5, 3)
    tool = Tool(model, [x], candidates)

    found = tool.table(num_probes=all_signs(monkeypatch, 3))

    for column, candidate in enumerate(candidates):
        rounded = tool.quantizer.activation(
            "", tool.network.layer_module(""), x, candidate.activation
        )
        change = x @ tool.weight_change("", candidate).T
        change = change + (rounded - x) @ model.weight.detach().T
        expected = half_quadratic(model(x).detach(), change)
        assert found[0, column] == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_mean_over_seeds_is_the_quadratic() -> None:
    """With the real probe: unbiased, so that many seeds agree with the closed form."""
    x, candidates = torch.randn(60, 5), parse("w2", "w3")
    model = nn.Linear(5, 3)
    tool = Tool(model, [x], candidates)

    found = tool.mean_table(100)

    for column, candidate in enumerate(candidates):
        change = x @ tool.weight_change("", candidate).T
        expected = half_quadratic(model(x).detach(), change)
        assert found[0, column] == pytest.approx(expected, rel=0.05)


def two_layers() -> nn.Sequential:
    """A network with a layer whose Jacobian is not constant."""
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def along(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    """Directional derivative, from the dense Jacobian."""
    jacobian = torch.func.jacrev(function)(point.detach())
    change: Tensor = torch.tensordot(jacobian.detach(), direction.detach(), dims=point.ndim)
    return change


def dense_change(model: nn.Module, name: str, change: Tensor, x: Tensor) -> Tensor:
    """First-order change of the logits when a weight changes."""

    def logits(weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, {f"{name}.weight": weight}, (x,))
        return out

    return along(logits, model.get_parameter(f"{name}.weight"), change)


def test_interactions_give_the_dense_quadratic_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of both layers are added before they are squared."""
    x, candidates, model = torch.randn(7, 5), parse("w2", "w3", "w4"), two_layers()
    tool = Tool(model, [x], candidates)

    interactions = tool.factor(num_probes=all_signs(monkeypatch, 3))

    for candidate in itertools.product(range(3), repeat=2):
        change = torch.zeros(7, 3)
        for name, column in zip(("0", "2"), candidate, strict=True):
            own = tool.weight_change(name, candidates[column])
            change = change + dense_change(model, name, own, x)
        expected = half_quadratic(model(x).detach(), change)
        assert interactions.together(np.array(candidate)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("rows_kept", "num_rows"), [(4096, 2 * 11), (0, 2 * 2)])
def test_table_is_half_the_mean_square_of_the_factor(
    monkeypatch: pytest.MonkeyPatch, rows_kept: int, num_rows: int
) -> None:
    """The additive loss is the diagonal of the interactions, and asking for them changes none.

    Whether there is a row per example and probe, or only one for each cell.
    """
    monkeypatch.setattr(factor_rows, "_MIN_KEPT", rows_kept)
    tool = Tool(two_layers(), [torch.randn(7, 5), torch.randn(4, 5)], parse("w2", "w4a8"))

    interactions = tool.factor(num_probes=2, seed=3)

    factor = interactions.factor.astype(np.float64)
    assert factor.shape == (num_rows, 2, 2)
    np.testing.assert_allclose(
        tool.table(num_probes=2, seed=3), 0.5 * (factor**2).mean(axis=0), rtol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_softened_probes_keep_the_scale_of_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """The curvature is that of the softened probabilities, its trace that of the plain ones."""
    x, candidates, model = torch.randn(9, 5), parse("w2", "w4"), nn.Linear(5, 3)
    tool = Tool(model, [x], candidates)
    every_sign(monkeypatch, 3)

    found = tool.table(num_probes=8, temperature=temperature)

    logits = model(x).detach()
    plain, softened = (torch.einsum("ncc->", fisher(logits / t)) for t in (1.0, temperature))
    for column, candidate in enumerate(candidates):
        change = x @ tool.weight_change("", candidate).T
        expected = half_quadratic(logits / temperature, change) * float(plain / softened)
        assert found[0, column] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", [KL, SquaredError(), CosineDistance()], ids=lambda m: m.name)
def test_every_metric_has_its_own_curvature(
    monkeypatch: pytest.MonkeyPatch, metric: OutputMetric
) -> None:
    """Half the quadratic form of the divergence's Hessian, by autograd, in the metric's unit."""
    x, candidates, model = torch.randn(4, 2, 5), parse("w2", "w4"), nn.Linear(5, 3)
    tool = Tool(model, [x], candidates, metric)
    every_sign(monkeypatch, 2 * 3)

    found = tool.table(num_probes=64)

    hessians = [curvature(metric, f) for f in model(x).detach().double().flatten(0, 1)]
    for column, candidate in enumerate(candidates):
        change = (x @ tool.weight_change("", candidate).T).double().flatten(0, 1)
        lost = [d @ hessian @ d / 2 for hessian, d in zip(hessians, change, strict=True)]
        assert found[0, column] == pytest.approx(np.mean(lost), rel=1e-4)


def looked_up() -> nn.Module:
    """An embedding and a linear layer."""
    layers = {"a": nn.Embedding(9, 6), "b": nn.Linear(6, 3)}
    return Function(lambda m, ids: m.b(torch.tanh(m.a(ids))), **layers)


def convolved() -> nn.Module:
    """A plain convolution and a grouped one, padded on both sides or on one."""
    first = nn.Conv2d(1, 4, 3, padding=1, stride=2)
    second = nn.Conv2d(4, 3, (2, 3), padding="same", groups=1, padding_mode="reflect")
    return nn.Sequential(first, nn.Tanh(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())


GROUPED: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "linear": (two_layers, lambda n: torch.randn(n, 5)),
    "convolution": (convolved, lambda n: torch.randn(n, 1, 6, 6)),
    "embedding": (looked_up, lambda n: torch.randint(0, 9, (n, 4)).float().long()),
}


@pytest.mark.parametrize("name", GROUPED)
def test_rows_of_groups_are_the_sums_of_rows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the same signs; the last group of a batch may be smaller."""
    make, draw = GROUPED[name]
    tool = Tool(make(), [draw(6), draw(5)], parse("w2", "w4a8d", "w8a4d"))
    single = tool.factor().factor

    monkeypatch.setattr(module_under_test, "_MIN_ROWS", 2)
    grouped = tool.factor().factor

    parts = (single[:4], single[4:6], single[6:10], single[10:])
    expected = np.array([part.sum(axis=0) for part in parts]) * np.sqrt(4 / 11)
    np.testing.assert_allclose(grouped, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_groups_are_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of examples in one group cancel in the mean over signs."""
    monkeypatch.setattr(module_under_test, "_MIN_ROWS", 2)
    x, candidates, model = torch.randn(61, 5), parse("w2", "w4"), nn.Linear(5, 3)
    tool = Tool(model, [x], candidates)

    found = tool.mean_table(200)

    for column, candidate in enumerate(candidates):
        change = x @ tool.weight_change("", candidate).T
        expected = half_quadratic(model(x).detach(), change)
        assert found[0, column] == pytest.approx(expected, rel=0.1)


def test_groups_price_what_a_batch_shares_as_single_examples_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer without an axis of examples, weight and input: not once per example of a group."""
    places = torch.randn(7, 4)
    layers = {"bias": nn.Linear(4, 5), "head": nn.Linear(5, 3)}
    model = Function(lambda m, x: m.head(x + m.bias(places).tanh().sum(dim=0)), **layers)
    tool = Tool(model, [torch.randn(9, 5), torch.randn(8, 5)], parse("w3", "w32a3d", "w3a3d"))
    expected = tool.table()[0]

    monkeypatch.setattr(module_under_test, "_MIN_ROWS", 2)
    found = tool.table()[0]

    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_no_interactions_where_not_wanted() -> None:
    """They take memory."""
    tool = Tool(two_layers(), [torch.randn(7, 5)], parse("w2"))

    estimator = OutputSketch(interactions=False)
    found = estimator.estimate(Estimation(tool.network, tool.data, tool.quantizer, tool.candidates))

    assert found.interactions is None
    assert (found.table.name, found.table.unit) == ("sketch", "nats")


def test_prediction_is_close_to_the_measured_divergence() -> None:
    """For small errors the second order is all there is."""
    x, candidates = torch.randn(200, 5), parse("w8", "w8a8", "w6")
    tool = Tool(two_layers(), [x], candidates)
    with torch.no_grad():
        reference = tool.network.module(x).double().log_softmax(dim=-1)

    found = tool.mean_table(20, num_probes=4)

    for row, layer in enumerate(tool.network.layers):
        for column, candidate in enumerate(candidates):
            alone = {layer.name: candidate}
            with quantized(tool.network, alone, tool.quantizer), torch.no_grad():
                log_q = tool.network.module(x).double().log_softmax(dim=-1)
            kl = float((reference.exp() * (reference - log_q)).sum(dim=-1).mean())
            assert found[row, column] == pytest.approx(kl, rel=0.1)


def test_original_precision_costs_nothing() -> None:
    """Exactly, for every layer."""
    tool = Tool(two_layers(), [torch.randn(7, 5)], parse("w2a8", "fp32"))

    found = tool.table()

    assert (found[:, 1] == 0).all()
    assert (found[:, 0] > 0).all()


@pytest.mark.parametrize("text", ["w2", "w8a3d"])
def test_layer_that_is_called_twice_gets_both_contributions(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The first-order change of a recurrent layer is that of both calls."""
    x, (candidate,) = torch.randn(7, 4), parse(text)
    layers = {"fc": nn.Linear(4, 4), "head": nn.Linear(4, 3)}
    model = Function(lambda m, x: m.head(m.fc(m.fc(x).tanh())), **layers)
    tool = Tool(model, [x], [candidate])

    found = tool.table(num_probes=all_signs(monkeypatch, 3))[0, 0]

    layer_module, fc, head = tool.network.layer_module("fc"), layers["fc"], layers["head"]
    change = dense_change(model, "fc", tool.weight_change("fc", candidate), x)
    hidden = fc(x).tanh().detach()
    d_input, d_hidden = (
        tool.quantizer.activation("fc", layer_module, v, candidate.activation) - v
        for v in (x, hidden)
    )
    change = change + along(model, x, d_input)
    change = change + along(lambda h: head(fc(h)), hidden, d_hidden)
    assert found == pytest.approx(half_quadratic(model(x).detach(), change), rel=1e-4)


def test_tied_weights_are_priced_by_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding a shared weight changes both layers: with interactions, both changes add up."""
    x, candidates = torch.randn(7, 4), parse("w2")
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "head": nn.Linear(4, 3)}
    layers["b"].weight = layers["a"].weight
    model = Function(lambda m, x: m.head(m.b(m.a(x).tanh())), **layers)
    tool = Tool(model, [x], candidates)

    interactions = tool.factor(num_probes=all_signs(monkeypatch, 3))

    shared = tool.weight_change("a", candidates[0])
    change = dense_change(model, "a", shared, x)  # functional_call changes tied weights together
    head = dense_change(model, "head", tool.weight_change("head", candidates[0]), x)
    expected = half_quadratic(model(x).detach(), change + head)
    assert interactions.together(np.zeros(3, dtype=np.intp)) == pytest.approx(expected, rel=1e-4)


def test_positions_of_a_sequence_are_averaged() -> None:
    """A sequence of four independent positions costs what they cost as examples."""
    x, candidates, model = torch.randn(40, 4, 5), parse("w2", "w3"), nn.Linear(5, 3)
    sequence = Tool(model, [x], candidates)
    examples = Tool(model, [x.reshape(160, 5)], candidates)

    found, expected = sequence.mean_table(60), examples.mean_table(60)

    np.testing.assert_allclose(found, expected, rtol=0.1)


def test_hidden_positions_cost_nothing() -> None:
    """What an attention mask hides does not matter, whatever is there."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            return y

    model, x = Masked(), torch.randn(6, 4, 5)
    mask = torch.tensor([1, 1, 0, 0]).expand(6, 4)
    other = torch.cat([x[:, :2], 10 * torch.randn(6, 2, 5)], dim=1)

    found, expected = (
        Tool(model, [{"x": inputs, "attention_mask": mask}], parse("w2", "w3")).table()
        for inputs in (x, other)
    )

    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_sequence_first_equals_batch_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which axis is the batch inside the network does not matter."""
    candidates = parse("w2", "w4a8d")
    first, second = nn.Linear(5, 6), nn.Linear(6, 3)

    def straight(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).tanh())  # type: ignore[no-any-return]

    def turned(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x.transpose(0, 1)).tanh()).transpose(0, 1)  # type: ignore[no-any-return]

    all_signs(monkeypatch, 3)
    x = torch.randn(4, 6, 5)
    models = [Function(f, a=first, b=second) for f in (straight, turned)]

    expected, found = (Tool(model, [x], candidates).table(num_probes=8) for model in models)

    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_flattened_tokens_equal_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that works on ``[N T, C]`` inside costs the same, also where ``C`` equals ``N``."""
    candidates = parse("w2", "w4a8d")
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 3)}

    def straight(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).tanh())  # type: ignore[no-any-return]

    def flat(m: Any, x: Tensor) -> Tensor:
        rows = m.b(m.a(x.reshape(-1, 5)).tanh())
        return rows.reshape(*x.shape[:2], 3)  # type: ignore[no-any-return]

    all_signs(monkeypatch, 3)
    x = torch.randn(4, 6, 5)
    models = [Function(f, **layers) for f in (straight, flat)]

    expected, found = (Tool(model, [x], candidates).table(num_probes=8) for model in models)

    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_weights_and_inputs_add_up_before_they_are_squared() -> None:
    """``R`` of ``w4a8`` is that of ``w4`` plus that of ``a8``."""
    candidates = parse("w2", "w32a4", "w2a4")
    tool = Tool(two_layers(), [torch.randn(7, 5)], candidates)

    factor = tool.factor().factor

    np.testing.assert_allclose(factor[..., 2], factor[..., 0] + factor[..., 1], atol=1e-6)
    assert np.abs(factor[..., 1]).max() > 0


def test_more_probes_vary_less() -> None:
    """The spread over seeds shrinks as probes are added."""
    tool = Tool(nn.Linear(5, 3), [torch.randn(4, 5)], parse("w2"))

    few, many = (
        np.std([tool.table(seed=s, num_probes=k)[0, 0] for s in range(30)]) for k in (1, 16)
    )

    assert many < 0.5 * few


def test_batches_do_not_change_the_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven batches are weighted by their examples."""
    x, candidates = torch.randn(10, 5), parse("w2", "w4")
    model = two_layers()
    probes = all_signs(monkeypatch, 3)

    whole = Tool(model, [x], candidates).table(num_probes=probes)
    parts = Tool(model, [x[:3], x[3:4], x[4:]], candidates).table(num_probes=probes)

    np.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_gradients_in_parts_equal_gradients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory allows only some examples at a time, the table is the same."""
    tool = Tool(two_layers(), [torch.randn(10, 5)], parse("w2", "w4a8"))
    expected = tool.table()

    monkeypatch.setattr(weight_changes, "WORK_ELEMENTS", 3 * 30)
    found = tool.table()

    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_input_changed_in_place_is_an_error() -> None:
    """The gradient of a weight needs the input that the layer read."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = m.b(y)
        y.relu_()
        return torch.add(z, y)

    model = Function(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    tool = Tool(model, [torch.randn(3, 4)], parse("w2"))

    with pytest.raises(ModelError, match="input of layer 'b' is changed in place"):
        tool.table()


def test_output_changed_in_place_is_fine() -> None:
    """An in-place ReLU after a layer is what most networks have."""
    layers = {"a": nn.Linear(5, 4), "b": nn.Linear(4, 3)}
    x, candidates = torch.randn(7, 5), parse("w2", "w4a8")
    models = (
        Function(lambda m, x: m.b(torch.relu(m.a(x))), **layers),
        Function(lambda m, x: m.b(torch.relu_(m.a(x))), **layers),
    )

    expected, found = (Tool(model, [x], candidates).table() for model in models)

    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_output_that_depends_on_no_layer_is_an_error() -> None:
    """A detached output has no gradient, and that is said."""
    model = Function(lambda m, x: m.a(x).detach(), a=nn.Linear(4, 3))
    tool = Tool(model, [torch.randn(3, 4)], parse("w2"))

    with pytest.raises(ModelError, match="does not depend on any quantizable layer"):
        tool.table()


def test_fewer_probes_than_none_are_refused() -> None:
    """At least one, or as many as the examples need."""
    with pytest.raises(InputError, match="num_probes >= 1, or 0 .*; got -1"):
        OutputSketch(num_probes=-1)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_shrinkage_that_is_no_share_is_refused(share: float) -> None:
    """From 0, no shrinkage, to 1, no interactions."""
    with pytest.raises(InputError, match=f"shrinkage from 0 to 1; got {share}"):
        OutputSketch(shrinkage=share)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    """Probabilities cannot be softened by it."""
    tool = Tool(nn.Linear(5, 3), [torch.randn(4, 5)], parse("w2"))

    with pytest.raises(InputError, match="a temperature is positive; got 0"):
        tool.table(temperature=0.0)


class Positions(nn.Module):
    """Tokens plus a position embedding that is looked up once for all examples, as in GPT-2."""

    def __init__(self, is_repeated: bool) -> None:
        super().__init__()
        self.token, self.place, self.head = nn.Embedding(9, 6), nn.Embedding(5, 6), nn.Linear(6, 4)
        self.is_repeated = is_repeated

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])[None]
        places = places.repeat(len(ids), 1) if self.is_repeated else places
        out: Tensor = self.head(torch.tanh(self.token(ids) + self.place(places)))
        return out


def sketched(model: nn.Module, data: list[Tensor], num_probes: int = 1) -> Any:
    """The additive table ``[L, 1]`` at 3 bits."""
    candidates = [Precision.parse("w3")]
    network = Network.of(model, data)
    quantizer, estimator = Quantizer(ActivationRanges({})), OutputSketch(num_probes=num_probes)
    return estimator.estimate(Estimation(network, Calibration(data), quantizer, candidates)).table


def test_one_row_of_positions_counts_for_every_example() -> None:
    """One look-up for the whole batch is priced as one look-up per example is."""
    torch.manual_seed(0)
    once, repeated = Positions(False).eval(), Positions(True).eval()
    repeated.load_state_dict(once.state_dict())
    data = [torch.randint(0, 9, (7, 5))]

    found, expected = sketched(once, data), sketched(repeated, data)

    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)


class Biased(nn.Module):
    """A bias from an embedding that has no axis of examples, as T5's relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.head = nn.Embedding(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x + self.bias(torch.arange(4)).sum(dim=0))
        return out


def test_shared_by_the_batch_is_priced_without_bias() -> None:
    """The mean over probes is that of batches of one example, where nothing is shared."""
    torch.manual_seed(0)
    model, x = Biased().eval(), torch.randn(6, 6)

    found, expected = sketched(model, [x], 800), sketched(model, list(x.split(1)), 200)

    np.testing.assert_allclose(found.values, expected.values, rtol=0.2)


class Routed(nn.Module):
    """Three experts; the last one is sent nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 4]`` to ``[N, 3]``."""
        expert = (x[:, 0] > 0).long()
        out = torch.zeros_like(x)
        for index, layer in enumerate(self.experts):
            rows = expert == index
            out[rows] = layer(x[rows])
        logits: Tensor = self.head(out)
        return logits


def test_an_expert_without_tokens_is_not_reached() -> None:
    """It is called, with no rows: nothing can be said of it, and others are priced as before."""
    tool = Tool(Routed(), [torch.randn(16, 4)], parse("w4a8d", "w8a8d"))

    found = tool.table()

    assert [layer.name for layer in tool.network.layers] == ["experts.0", "experts.1", "head"]
    assert tool.network.uncalled == ("experts.2",)
    assert (found > 0).all()


class Tagger(nn.Module):
    """A recurrent network over sequences of unlike lengths."""

    def __init__(self, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = recurrent
        self.head = nn.Linear(2 * 4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        y: Tensor = self.head(output.sum(dim=1) / lengths[:, None])
        return y


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_weights_are_priced_by_their_sum_over_steps(
    monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    """Against derivatives through torch's own kernel, which calls no layer, and example by example.

    Changes of all steps add up before they are squared; steps that a sequence lacks add nothing.
    """
    model = Tagger(make(3, 4, bidirectional=True)).eval()
    inputs = (torch.randn(4, 5, 3), torch.tensor([2, 5, 1, 4]))
    tool = Tool(model, [(inputs, None)], parse("w2"))

    found = tool.table(num_probes=all_signs(monkeypatch, 3))[:, 0]

    logits = model(*inputs).detach()
    for row, layer in enumerate(tool.network.layers[:-1]):
        parameter = f"rnn.weight_{layer.name.removeprefix('rnn.')}"

        def said(weight: Tensor, parameter: str = parameter) -> Tensor:
            y: Tensor = torch.func.functional_call(model, {parameter: weight}, inputs)
            return y

        weight = model.get_parameter(parameter).detach()
        jacobian = torch.autograd.functional.jacobian(said, weight)  # [N, C, O, I]
        change = tool.weight_change(layer.name, tool.candidates[0])
        expected = half_quadratic(logits, (jacobian * change).sum(dim=(2, 3)))
        assert found[row] == pytest.approx(expected, rel=1e-4)
    assert len(found) == 5


def fitted(net: nn.Module) -> Estimation:
    """A question about codes that were made to fit the examples."""
    task = mpq.Task(
        net.eval(), [torch.randn(40, 5)], candidates=["w2", "w3", "w4"], rounding="gptq"
    )
    return Prepared.of(task).asked


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_prices_are_a_mean_of_layers_and_channels(share: float) -> None:
    """Geometric; without interactions, as channels have none."""
    on = fitted(two_layers())
    layers, channels = (OutputSketch(channels=share).estimate(on) for share in (0.0, 1.0))

    found = OutputSketch(channels=share).estimate(on)

    assert found.interactions is None
    assert channels.interactions is None
    assert layers.interactions is not None
    mean = layers.table.values ** (1 - share) * channels.table.values**share
    np.testing.assert_allclose(found.table.values, mean, rtol=1e-6)
    np.testing.assert_allclose(layers.interactions.alone, layers.table.values, rtol=1e-4)


def test_interactions_beside_channels_are_had_by_asking() -> None:
    """With a shrinkage."""
    estimator = OutputSketch(channels=0.5, shrinkage=0.5)

    assert estimator.estimate(fitted(two_layers())).interactions is not None


def test_a_layer_of_one_channel_has_one_price() -> None:
    """Whatever the share."""
    net = nn.Sequential(nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 3))
    on = fitted(net)

    layers, channels = (OutputSketch(channels=share).estimate(on).table for share in (0.0, 1.0))

    np.testing.assert_allclose(layers.values[0], channels.values[0], rtol=1e-5)


def test_channels_that_are_no_share_are_refused() -> None:
    """With what was given."""
    with pytest.raises(InputError, match=r"channels from 0 to 1, a share; got 2"):
        OutputSketch(channels=2.0)


def test_the_default_dtype_does_not_matter() -> None:
    """What a user sets for making networks is not what prices are computed in."""
    tables = []
    model, data = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), [torch.randn(8, 6)]
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            task = mpq.Task(model.eval(), data, data, candidates=["w3", "w4a4"], rounding="nearest")
            tables.append(OutputSketch().estimate(Prepared.of(task).asked).table.values)
        finally:
            torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-5)
