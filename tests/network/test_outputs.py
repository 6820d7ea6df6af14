"""Logits from whatever a network returns, and the divergence between them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from mpq.errors import ModelError
from mpq.network import divergence
from mpq.network.divergence import LOGITS_AT_ONCE, fisher_probe, kl_divergence
from mpq.network.examples import Batch
from mpq.network.finite import is_finite
from mpq.network.outputs import position_logits, position_values, position_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fisher(logits: Tensor) -> Tensor:
    """``diag(p) - p p^T`` of one position, float64."""
    p = logits.double().softmax(dim=-1)
    return torch.diag(p) - torch.outer(p, p)


def test_classifier_has_one_position() -> None:
    """``[N, C]`` becomes ``[N, 1, C]``."""
    logits = torch.randn(3, 4)

    found = position_logits(logits)

    assert torch.equal(found, logits[:, None])


def test_sequence_is_taken_as_it_is() -> None:
    """``[N, P, C]`` stays."""
    logits = torch.randn(3, 5, 4)

    found = position_logits(logits)

    assert torch.equal(found, logits)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4, 1), (2, 3, 1, 1), (2, 3, 2, 4, 5)])
def test_image_has_a_position_per_pixel(shape: tuple[int, ...]) -> None:
    """``[N, C, ...]``: every pixel is a position, also where the image is one pixel wide."""
    logits = torch.randn(shape)

    found = position_logits(logits)

    columns = np.moveaxis(logits.numpy(), 1, -1).reshape(shape[0], -1, shape[1])
    np.testing.assert_array_equal(found.numpy(), columns)


@pytest.mark.parametrize("wrap", [dict, SimpleNamespace], ids=["key", "attribute"])
def test_logits_are_found_in_an_output(wrap: Any) -> None:
    """A dict with ``logits`` and an object with ``.logits`` are both unpacked."""
    logits = torch.randn(3, 4)

    found = position_logits(wrap(logits=logits, loss=None))

    assert torch.equal(found[:, 0], logits)


def test_logits_are_found_in_a_hugging_face_output() -> None:
    """``ModelOutput`` is a mapping with attributes."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    logits = torch.randn(3, 4)

    found = position_logits(SequenceClassifierOutput(logits=logits))

    assert torch.equal(found[:, 0], logits)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.randn(2, 3), None), "returns a tuple, which is neither"),
        ({"scores": torch.randn(2, 3)}, "returns a dict, which is neither"),
        (torch.zeros(2, 3, dtype=torch.long), "returns a Tensor, which is neither"),
        (None, "returns a NoneType"),
        (torch.randn(3), r"the output is \(3,\); expected logits"),
        (torch.randn(2, 1), r"the output is \(2, 1\).*at least two classes"),
        (torch.randn(2, 5, 1), "at least two classes"),
        (torch.randn(2, 1, 4, 4), "at least two classes"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinite"),
        (torch.tensor([[1.0, float("inf")]]), "NaN or infinite"),
    ],
)
def test_unusable_output_is_refused(output: Any, message: str) -> None:
    """What has no logits of two classes is refused, saying what came."""
    with pytest.raises(ModelError, match=message):
        position_logits(output)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3,), (3, 1, 1)),
        ((3, 1), (3, 1, 1)),
        ((3, 4), (3, 1, 4)),
        ((3, 5, 1), (3, 5, 1)),
        ((3, 4, 2, 5), (3, 10, 4)),
        ((3, 1, 2, 2), (3, 4, 1)),
    ],
)
def test_numbers_of_any_shape_have_positions(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Regression may give a number per example, a vector, a sequence or an image."""
    values = torch.randn(shape)

    found = position_values(values)

    columns = values.numpy().reshape(3, -1) if len(shape) == 1 else values.numpy()
    if len(shape) > 3:
        columns = np.moveaxis(columns, 1, -1)
    assert tuple(found.shape) == expected
    np.testing.assert_array_equal(found.numpy(), columns.reshape(expected))


@pytest.mark.parametrize("name", ["logits", "last_hidden_state", "prediction", "embeddings"])
@pytest.mark.parametrize("wrap", [dict, SimpleNamespace], ids=["key", "attribute"])
def test_numbers_are_found_in_an_output(wrap: Any, name: str) -> None:
    """Under the names that there are, as a key or as an attribute."""
    values = torch.randn(3, 5, 4)

    found = position_values(wrap(**{name: values, "loss": None}))

    assert torch.equal(found, values)


def test_numbers_are_found_in_a_hugging_face_output() -> None:
    """The last hidden state comes before what is pooled; logits come before both."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    states, pooled = torch.randn(3, 5, 4), torch.randn(3, 4)

    output = BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

    assert torch.equal(position_values(output), states)
    assert torch.equal(position_values({"logits": pooled, **output}), pooled[:, None])
    with pytest.raises(ModelError, match="neither a floating-point tensor nor has `logits`"):
        position_logits(output)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((torch.randn(2, 3), None), "returns a tuple, which is neither"),
        ({"scores": torch.randn(2, 3)}, "nor has one of logits, last_hidden_state, prediction"),
        (
            {"a": torch.randn(2), "b": [torch.randn(2)]},
            "it has the outputs a, b.0; name those that count",
        ),
        (torch.zeros(2, 3, dtype=torch.long), "returns a Tensor, which is neither"),
        (torch.tensor(1.0), "returns a Tensor, which is neither"),
        (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        (torch.tensor([[[float("inf")]]]), "NaN or infinite"),
    ],
)
def test_unusable_numbers_are_refused(output: Any, message: str) -> None:
    """What has no numbers per example is refused, saying what came."""
    with pytest.raises(ModelError, match=message):
        position_values(output)


def test_positions_count_alike_without_a_mask() -> None:
    """Every position is an equal share of its example."""
    logits = torch.zeros(2, 4, 3)

    weights = position_weights(Batch((torch.ones(2, 4),)), logits)

    assert torch.equal(weights, torch.full((2, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_masked_positions_do_not_count(dtype: torch.dtype) -> None:
    """The mean over an example is over the positions that its mask shows."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).to(dtype)
    batch = Batch((), {"attention_mask": mask})

    weights = position_weights(batch, torch.zeros(2, 4, 3))

    assert weights.tolist() == [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]


def test_mask_of_another_shape_is_not_the_outputs() -> None:
    """A classifier over sequences has one position, whatever mask its input has."""
    batch = Batch((), {"attention_mask": torch.tensor([[1, 0, 0], [1, 1, 1]])})

    weights = position_weights(batch, torch.zeros(2, 1, 3))

    assert weights.tolist() == [[1.0], [1.0]]


def test_divergence_equals_scipy() -> None:
    """The divergence at every position is scipy's relative entropy."""
    generator = np.random.default_rng(0)
    reference, other = generator.normal(0, 3, (2, 4, 5, 6))

    found = kl_divergence(torch.from_numpy(reference), torch.from_numpy(other))

    p, q = (scipy.special.softmax(x, axis=-1) for x in (reference, other))
    assert found.shape == (4, 5)
    np.testing.assert_allclose(found.numpy(), scipy.stats.entropy(p, q, axis=-1), rtol=1e-12)


def test_divergence_of_close_float32_logits_does_not_drown() -> None:
    """Perturbed by 1e-4, float32 logits still have the divergence of their float64 copies."""
    reference = torch.randn(2, 3, 10)
    other = reference + 1e-4 * torch.randn(2, 3, 10)
    p, q = (scipy.special.softmax(x.double().numpy(), axis=-1) for x in (reference, other))
    expected = (p * np.log(p / q)).sum(axis=-1)

    found = kl_divergence(reference, other)

    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_divergence_does_not_change_with_a_constant() -> None:
    """Softmax ignores a constant that is added to all logits; so does the divergence."""
    reference, other = torch.randn(2, 2, 3, 4, dtype=torch.float64)

    found = kl_divergence(reference + 7.0, other - 11.0)

    torch.testing.assert_close(found, kl_divergence(reference, other))


def test_divergence_of_equal_logits_is_zero_and_never_negative() -> None:
    """Rounding must not make it negative."""
    logits = 50 * torch.randn(10, 10, 100)

    found = kl_divergence(logits, logits.clone())

    assert torch.equal(found, torch.zeros(10, 10, dtype=torch.float64))
    assert bool((kl_divergence(logits, logits + 1e-6 * torch.randn(10, 10, 100)) >= 0).all())


@pytest.mark.parametrize("change", [1e-3, 1.0, 50.0])
def test_divergence_in_pieces_equals_scipy(change: float) -> None:
    """Softened, of more logits than are looked at at once, and of networks that are far apart."""
    reference = 3 * torch.randn(3, 2, LOGITS_AT_ONCE // 2)
    other = reference + change * torch.randn(reference.shape)

    found = kl_divergence(reference, other, 1.5)

    p, q = (scipy.special.log_softmax(x.double().numpy() / 1.5, -1) for x in (reference, other))
    np.testing.assert_allclose(found.numpy(), (np.exp(p) * (p - q)).sum(axis=-1), rtol=2e-5)


def test_the_slope_of_the_divergence_is_that_of_close_probabilities() -> None:
    """Their difference, also where it is small."""
    reference = torch.randn(2, 3, 10)
    other = (reference + 1e-4 * torch.randn(2, 3, 10)).requires_grad_()

    (slope,) = torch.autograd.grad(kl_divergence(reference, other).sum(), other)

    p, q = (scipy.special.softmax(x.detach().double(), axis=-1) for x in (reference, other))
    np.testing.assert_allclose(slope.numpy(), q - p, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_found(dtype: torch.dtype, value: float) -> None:
    """Anywhere; nothing at all is finite."""
    values = torch.randn(3, 5).to(dtype)
    spoilt = values.clone()
    spoilt[2, 1] = value

    assert is_finite(values)
    assert is_finite(values[:0])
    assert not is_finite(spoilt)


def test_divergence_of_certain_predictions_is_finite() -> None:
    """Where a class has probability 0 in float64, its term is 0, not NaN."""
    reference = torch.tensor([[[0.0, -2000.0]]])

    found = kl_divergence(reference, torch.tensor([[[0.0, -1.0]]]))

    assert float(found) == pytest.approx(float(np.log1p(np.exp(-1.0))))


def test_mean_outer_product_of_probes_is_the_fisher_information() -> None:
    """Over many draws, ``E[u u^T]`` is ``diag(p) - p p^T``."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    many = logits.expand(200, 1000, 4)

    u = fisher_probe(many, torch.ones(200, 1000), torch.Generator().manual_seed(0)).double()

    found = torch.einsum("npc,npd->cd", u, u) / 200_000
    torch.testing.assert_close(found, fisher(logits), atol=3e-3, rtol=0)


def test_sum_over_all_signs_is_exactly_the_fisher_information() -> None:
    """The eight sign vectors of three classes, each once, give ``diag(p) - p p^T``."""
    logits = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    draws = fisher_probe(
        logits.expand(1, 400, 3), torch.ones(1, 400), torch.Generator().manual_seed(0)
    )[0]
    probes = torch.unique((draws / 1e-9).round(), dim=0) * 1e-9

    assert len(probes) == 8
    torch.testing.assert_close(probes.T @ probes / 8, fisher(logits), atol=1e-8, rtol=0)


def test_a_probe_in_pieces_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the signs of one draw for all positions, in float64, to 1e-5 of the largest number."""
    logits = 5 * torch.randn(3, 5, 7)
    weights = torch.rand(3, 5, dtype=torch.float64)
    signs = torch.randint(0, 2, (3, 5, 7), generator=torch.Generator().manual_seed(4)) * 2.0 - 1
    p = logits.double().softmax(dim=-1)
    root = p.sqrt() * signs
    expected = (root - p * root.sum(dim=-1, keepdim=True)) * weights.sqrt()[..., None]

    for at_once in (1, 15, 28, 1000):
        monkeypatch.setattr(divergence, "LOGITS_AT_ONCE", at_once)
        found = fisher_probe(logits, weights, torch.Generator().manual_seed(4))

        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_probe_is_orthogonal_to_a_constant() -> None:
    """A constant added to all logits changes nothing, so that no probe sees it."""
    logits = torch.randn(3, 4, 5, dtype=torch.float64)

    u = fisher_probe(logits, torch.ones(3, 4), torch.Generator().manual_seed(1))

    torch.testing.assert_close(u.sum(dim=-1), torch.zeros(3, 4, dtype=torch.float64))


def test_probe_is_scaled_by_the_root_of_the_weight() -> None:
    """A position that counts a quarter has half the probe; a hidden one has none."""
    logits = torch.randn(1, 3, 4, dtype=torch.float64)
    whole = fisher_probe(logits, torch.ones(1, 3), torch.Generator().manual_seed(2))

    found = fisher_probe(logits, torch.tensor([[0.25, 1.0, 0.0]]), torch.Generator().manual_seed(2))

    torch.testing.assert_close(found[0, 0], whole[0, 0] / 2)
    torch.testing.assert_close(found[0, 1], whole[0, 1])
    assert torch.equal(found[0, 2], torch.zeros(4, dtype=torch.float64))


def test_probe_has_the_logits_dtype_and_no_gradient() -> None:
    """A bfloat16 network needs a bfloat16 probe; no gradient flows through it."""
    logits = torch.randn(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)

    u = fisher_probe(logits, torch.ones(2, 3), torch.Generator().manual_seed(0))

    assert u.dtype == torch.bfloat16
    assert not u.requires_grad


def test_probe_depends_on_its_generator_only() -> None:
    """The same seed gives the same probe; the global random state is not touched."""
    logits = torch.randn(2, 3, 4)
    state = torch.get_rng_state()

    first, second = (
        fisher_probe(logits, torch.ones(2, 3), torch.Generator().manual_seed(5)) for _ in range(2)
    )

    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
