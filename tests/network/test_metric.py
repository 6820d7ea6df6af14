"""Distances between outputs, and probes whose mean outer product is their curvature."""

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.errors import InputError, ModelError, UnknownNameError
from mpq.network import divergence, metric
from mpq.network.metric import KL, CosineDistance, KLDivergence, OutputMetric, SquaredError
from mpq.network.metrics import METRICS

EVERY: tuple[OutputMetric, ...] = (
    KL,
    KLDivergence(2.0),
    KLDivergence(0.5),
    SquaredError(),
    CosineDistance(),
)


def name_of(tested: OutputMetric) -> str:
    """How pytest calls a metric."""
    return f"{tested.name}-{getattr(tested, 'temperature', '')}".rstrip("-")


@pytest.fixture(params=EVERY, ids=name_of)
def every(request: pytest.FixtureRequest) -> OutputMetric:
    """Each metric."""
    found: OutputMetric = request.param
    return found


def outputs(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_hand(tested: OutputMetric, reference: Tensor, other: Tensor) -> float:
    """The divergence at one position, by scipy."""
    p, q = reference.numpy(), other.numpy()
    if isinstance(tested, SquaredError):
        return float(scipy.spatial.distance.sqeuclidean(p, q)) / 2
    if isinstance(tested, CosineDistance):
        return float(scipy.spatial.distance.cosine(p, q))
    assert isinstance(tested, KLDivergence)
    t = tested.temperature
    p, q = scipy.special.softmax(p / t), scipy.special.softmax(q / t)
    return float(t**2 * scipy.special.rel_entr(p, q).sum())


def test_divergence_equals_scipy(every: OutputMetric) -> None:
    """At every position of every example."""
    reference, other = outputs(3, 4, 5), outputs(3, 4, 5, seed=1)

    found = every.divergence(reference, other)

    assert (found.shape, found.dtype) == ((3, 4), torch.float64)
    for row, column in itertools.product(range(3), range(4)):
        expected = by_hand(every, reference[row, column], other[row, column])
        assert float(found[row, column]) == pytest.approx(expected, rel=1e-12)


def test_divergence_is_zero_for_equal_outputs_and_never_negative(every: OutputMetric) -> None:
    """Whatever rounding does, also for float32."""
    same = outputs(5, 6, 40).float()

    nearby = every.divergence(same, same + 1e-7 * outputs(5, 6, 40, seed=1).float())

    assert torch.equal(every.divergence(same, same.clone()), torch.zeros(5, 6).double())
    assert bool((nearby >= 0).all())


def test_divergence_of_close_float32_outputs_keeps_its_digits(every: OutputMetric) -> None:
    """Apart by 1e-4: the second-order expansion, to the third order that is left."""
    f = outputs(1, 1, 6).float()
    change = 1e-4 * outputs(1, 1, 6, seed=1).float()
    exact = (f + change).double() - f.double()

    found = float(every.divergence(f, f + change))

    expected = 0.5 * exact[0, 0] @ hessian(every, f[0, 0].double()) @ exact[0, 0]
    assert found == pytest.approx(float(expected), rel=1e-3)


def hessian(tested: OutputMetric, output: Tensor) -> Tensor:
    """Of the divergence from an output ``[C]``, where the other is the same, by autograd."""

    def apart(other: Tensor) -> Tensor:
        return tested.divergence(output[None, None], other[None, None]).sum()

    return torch.autograd.functional.hessian(apart, output)  # type: ignore[no-any-return]


def closed_form(tested: OutputMetric, output: Tensor) -> Tensor:
    """The same, as the docstrings have it."""
    identity = torch.eye(len(output), dtype=torch.float64)
    if isinstance(tested, SquaredError):
        return identity
    if isinstance(tested, CosineDistance):
        length = output.norm()
        along = output / length
        projected: Tensor = (identity - along.outer(along)) / length**2
        return projected
    assert isinstance(tested, KLDivergence)
    p = (output / tested.temperature).softmax(dim=0)
    return p.diag() - p.outer(p)


def all_probes(
    monkeypatch: pytest.MonkeyPatch, tested: OutputMetric, output: Tensor, weight: float
) -> Tensor:
    """``[2^C, C]``: the probe of one output for every vector of signs."""
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(output))))
    for module in (metric, divergence):
        monkeypatch.setattr(module, "random_signs", lambda like, _: signs[None].to(like))
    many = output.expand(1, len(signs), -1)
    weights = torch.full((1, len(signs)), weight, dtype=torch.float64)
    return tested.probe(many, weights, torch.Generator())[0]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_mean_outer_product_of_all_probes_is_the_hessian(
    monkeypatch: pytest.MonkeyPatch, every: OutputMetric, weight: float
) -> None:
    """Exactly, times the share that the position has of its example."""
    output = 3 * outputs(4)

    probes = all_probes(monkeypatch, every, output, weight)

    found = probes.T @ probes / len(probes)
    torch.testing.assert_close(found, weight * hessian(every, output))
    torch.testing.assert_close(found, weight * closed_form(every, output))


def test_mean_outer_product_of_drawn_probes_is_the_hessian(every: OutputMetric) -> None:
    """With the generator's signs, up to what 200,000 draws leave."""
    output = outputs(4)

    many = every.probe(
        output.expand(200, 1000, 4), torch.ones(200, 1000), torch.Generator().manual_seed(0)
    )

    found = torch.einsum("npc,npd->cd", many, many) / 200_000
    expected = closed_form(every, output)
    torch.testing.assert_close(found, expected, atol=0.01 * float(expected.abs().max()), rtol=0)


def test_positions_have_signs_of_their_own(every: OutputMetric) -> None:
    """Products of different positions and examples vanish in the mean."""
    many = outputs(1, 2, 4).expand(50_000, 2, 4)

    u = every.probe(many, torch.ones(50_000, 2), torch.Generator().manual_seed(0))

    own = torch.einsum("npc,npd->cd", u, u).abs().max() / 100_000
    positions = torch.einsum("nc,nd->cd", u[:, 0], u[:, 1]).abs().max() / 50_000
    examples = torch.einsum("npc,npd->cd", u[:-1], u[1:]).abs().max() / 100_000
    assert max(positions, examples) < 0.03 * own


def test_probe_has_the_outputs_dtype_and_no_gradient(every: OutputMetric) -> None:
    """A bfloat16 network is differentiated from a bfloat16 probe."""
    output = outputs(2, 3, 4).bfloat16().requires_grad_()

    u = every.probe(output, torch.ones(2, 3), torch.Generator().manual_seed(0))

    assert u.dtype == torch.bfloat16
    assert not u.requires_grad


def test_probe_depends_on_its_generator_only(every: OutputMetric) -> None:
    """The same seed, the same probe; the global random state is left alone."""
    f, ones, state = outputs(2, 3, 4), torch.ones(2, 3), torch.get_rng_state()

    first, second, other = (
        every.probe(f, ones, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )

    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_length_of_an_embedding_does_not_matter_to_the_cosine() -> None:
    """Neither to the divergence nor to what a relative change of the output costs."""
    f, g, tested = outputs(1, 1, 5), outputs(1, 1, 5, seed=1), CosineDistance()

    once, scaled = tested.divergence(f, g), tested.divergence(7 * f, 1e-3 * g)

    torch.testing.assert_close(once, scaled)
    torch.testing.assert_close(hessian(tested, f[0, 0]), 49 * hessian(tested, 7 * f[0, 0]))


def test_only_probabilities_are_softened() -> None:
    """A temperature multiplies the one that there is; other metrics stay themselves."""
    assert KLDivergence(3.0).softened(2.0) == KLDivergence(6.0)
    assert SquaredError().softened(2.0) == SquaredError()
    assert CosineDistance().softened(2.0) == CosineDistance()


def test_only_probabilities_have_labels_and_a_fisher_matrix(every: OutputMetric) -> None:
    """Others refuse logits by name, and take a probe for a drawn label's gradient."""
    f, ones = outputs(2, 3, 4), torch.ones(2, 3, dtype=torch.float64)

    p = every.fisher_probabilities(f)
    drawn, probe = (
        draw(f, ones, torch.Generator().manual_seed(0))
        for draw in (every.label_gradient, every.probe)
    )

    assert every.is_classification == (every.name == "kl") == (p is not None)
    if p is None:
        torch.testing.assert_close(drawn, probe)
        with pytest.raises(InputError, match=f"labels are classes; the metric '{every.name}' has"):
            every.logits(f)
    else:
        found = p[0, 0].diag() - p[0, 0].outer(p[0, 0])
        torch.testing.assert_close(found, hessian(every, f[0, 0]))


def test_high_temperature_is_half_the_variance_of_the_change() -> None:
    """All classes are then alike: ``T^2 KL`` tends to the variance of the change, halved."""
    f, g = outputs(1, 1, 7), outputs(1, 1, 7, seed=1)

    found = float(KLDivergence(1e4).divergence(f, g))

    assert found == pytest.approx(np.var((g - f).numpy()) / 2, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    """The message has the number."""
    with pytest.raises(InputError, match=f"a temperature is positive; got {temperature}"):
        KLDivergence(temperature)


def test_metrics_are_found_by_name_with_options() -> None:
    """What ``--metric`` takes."""
    assert METRICS.names() == ("kl", "squared-error", "cosine", "outputs")
    assert METRICS.build("kl:temperature=2") == KLDivergence(2.0)
    assert METRICS.build("cosine") == CosineDistance()
    assert all(10 < len(part.summary) < 80 for part in METRICS)
    with pytest.raises(UnknownNameError, match="no metric 'mse'"):
        METRICS.build("mse")


def test_a_single_number_has_no_classes() -> None:
    """What predicts one number per example is refused by KL, saying what to take, not by others."""
    single = outputs(3, 1)

    assert SquaredError().positions(single).shape == (3, 1, 1)
    assert CosineDistance().positions(single).shape == (3, 1, 1)
    with pytest.raises(ModelError, match="no probabilities: metric='squared-error' or 'cosine'"):
        KL.positions(single)


def regression() -> nn.Module:
    """Two numbers from six."""
    torch.manual_seed(0)
    layers = (nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
    return nn.Sequential(*layers).eval()


def measurements(seed: int, count: int = 96) -> Tensor:
    """What the network reads."""
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def search(model: nn.Module, compared: str, data: Any, held_out: Any) -> mpq.SearchResult:
    """Seven tenths of what 8 bits take."""
    candidates = ["w2", "w4", "w6", "w8a8"]
    task = mpq.Task(model, data, held_out, candidates=candidates, metric=compared)
    return mpq.search(task, ["effective_bits=0.7x:w8"])


def test_a_regression_network_end_to_end() -> None:
    """No classes, no softmax: half the squared error, in the table, the record and the report."""
    model, unseen = regression(), measurements(2)
    targets = torch.zeros(96, 2)

    found = search(model, "squared-error", [measurements(1)], [(unseen, targets)])

    with torch.no_grad():
        by_hand = (
            F.mse_loss(
                mpq.quantize(model, found.assignment)(unseen), model(unseen), reduction="sum"
            )
            / 2
            / 96
        )
    record = found.assignment.metadata
    assert found.measured.divergence == pytest.approx(float(by_hand), rel=1e-5)
    assert found.measured.accuracy is None
    assert (found.problem.loss.unit, record.loss_unit) == ("squared_output", "squared_output")
    assert record.measured_loss == found.measured.divergence
    assert record.measured_unit == "squared_output"
    columns = set(found.comparison_table().columns)
    names = {"predicted_loss_squared_output", "measured_squared_error_squared_output"}
    assert names <= columns
    assert found.measured.divergence < 0.5 * found.comparison("w4a32").measured.divergence
    six = found.comparison("w6a32")
    assert six.predicted_loss == pytest.approx(six.measured.divergence, rel=0.3)
    again = mpq.evaluate(model, found.assignment, [unseen], SquaredError())["quantized"]
    assert again.divergence == pytest.approx(found.measured.divergence)
    assert again.to_dict()["squared_error_squared_output"] == again.divergence


def test_an_embedding_network_end_to_end() -> None:
    """One minus the cosine; how long embeddings are changes neither table nor assignment."""
    model, longer, unseen = regression(), regression(), measurements(2)
    with torch.no_grad():
        for parameter in longer[-1].parameters():  # type: ignore[index]
            parameter *= 8

    found, other = (search(m, "cosine", [measurements(1)], [unseen]) for m in (model, longer))

    with torch.no_grad():
        similar = F.cosine_similarity(mpq.quantize(model, found.assignment)(unseen), model(unseen))
    by_hand = float((1 - similar.double()).mean())
    assert found.problem.loss.unit == "cosine_distance"
    assert found.measured.divergence == pytest.approx(by_hand, rel=1e-3)
    np.testing.assert_allclose(other.problem.loss.values, found.problem.loss.values, rtol=1e-4)
    assert other.assignment.precisions == found.assignment.precisions
    assert other.measured.divergence == pytest.approx(found.measured.divergence, rel=1e-4)


def test_an_encoder_without_a_head_end_to_end() -> None:
    """Its last hidden states, of the tokens that the mask shows; KL divergence refuses them."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12,
    )  # fmt: skip
    model, ids = BertModel(config).eval(), torch.randint(0, 12, (8, 5))
    mask = (torch.arange(5) < torch.tensor([5, 3, 4, 5, 2, 5, 1, 5])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}

    found = search(model, "cosine", [batch], [batch])

    with torch.no_grad():
        states = [
            m(**batch).last_hidden_state for m in (mpq.quantize(model, found.assignment), model)
        ]
    apart = 1 - F.cosine_similarity(states[0], states[1], dim=-1).double()
    by_hand = float(((apart * mask).sum(dim=1) / mask.sum(dim=1)).mean())
    assert found.measured.divergence == pytest.approx(by_hand, rel=1e-3)
    assert "encoder.layer.0.output.dense" in found.assignment.precisions
    with pytest.raises(ModelError, match="neither a floating-point tensor nor has `logits`"):
        search(model, "kl", [batch], [batch])


def test_an_unknown_metric_is_refused() -> None:
    """With the names that there are."""
    with pytest.raises(UnknownNameError, match=r"no metric 'mse' \(there are: cosine, kl, outputs"):
        search(regression(), "mse", [measurements(1)], [measurements(2)])


def test_outputs_without_a_direction_do_not_spoil_the_others() -> None:
    """An embedding of zeros (a masked position, a ReLU that is off) has no slope."""
    outputs = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]]])
    changed = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 1.0, 2.0]]], requires_grad=True)

    lost = CosineDistance().divergence(outputs, changed)
    (slope,) = torch.autograd.grad(lost.sum(), changed)
    probe = CosineDistance().probe(outputs, torch.ones(1, 2), torch.Generator().manual_seed(0))

    assert lost[0].tolist() == pytest.approx([0.0, 1 - 8 / 9])
    assert slope[0, 0].tolist() == probe[0, 0].tolist() == [0.0, 0.0, 0.0]
    assert bool(slope.isfinite().all())


def test_a_relu_in_front_of_the_cosine_can_be_searched() -> None:
    """Some embeddings are zeros."""
    linear = nn.Linear(6, 4)
    model = nn.Sequential(linear, nn.ReLU())
    with torch.no_grad():
        linear.bias.fill_(-1.0)
    assert bool((model(measurements(1)) == 0).all(dim=1).any())

    found = search(model.eval(), "cosine", [measurements(1)], [measurements(2)])

    assert found.solution.loss is not None


def test_the_relative_error_has_no_scale() -> None:
    """An output a hundred times as large, with errors a hundred times as large, loses as much."""
    metric = METRICS.build("squared-error:relative=true")
    one, other = torch.randn(2, 4, 3, 5).double()

    found = metric.divergence(one, other)

    expected = 0.5 * (other - one).square().sum(-1) / one.square().sum(-1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(metric.divergence(100 * one, 100 * other), found)
    zeros = torch.zeros(1, 1, 5)
    assert metric.divergence(zeros, zeros + 1).item() == 2.5


def test_its_probes_have_its_curvature() -> None:
    """The identity over the squared length, times the weight of the position."""
    metric = METRICS.build("squared-error:relative=true")
    outputs = torch.tensor([[[3.0, 0.0, 4.0]]])
    generator = torch.Generator().manual_seed(0)

    drawn = metric.probe(outputs, torch.full((1, 1), 0.5, dtype=torch.float64), generator)

    torch.testing.assert_close(drawn.abs(), torch.full((1, 1, 3), (0.5 / 25) ** 0.5))
