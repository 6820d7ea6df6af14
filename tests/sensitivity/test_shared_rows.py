"""One row for all examples: shapes and numbers during an estimate are those of the plain pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpq
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation

CHOICES = tuple(map(Precision.parse, ("w4", "w4a8", "fp32")))


def make_swinv2() -> tuple[nn.Module, list[Any]]:
    """A table of relative positions that two layers compute for the whole batch."""
    from transformers import Swinv2Config, Swinv2ForImageClassification

    config = Swinv2Config(
        image_size=16, patch_size=4, embed_dim=4, depths=[1], num_heads=[2], window_size=4,
        num_labels=5,
    )  # fmt: skip
    return Swinv2ForImageClassification(config), [torch.randn(3, 3, 16, 16)]


def make_longformer() -> tuple[nn.Module, list[Any]]:
    """Global attention that divides its projection of one token in place."""
    from transformers import LongformerConfig, LongformerForSequenceClassification

    config = LongformerConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, attention_window=4, max_position_embeddings=20, pad_token_id=1,
    )  # fmt: skip
    ids = torch.randint(3, 20, (3, 8), generator=torch.Generator().manual_seed(1))
    return LongformerForSequenceClassification(config), [{"input_ids": ids}]


@pytest.mark.parametrize("name", ["fisher", "first-order", "output-gradient", "hessian-trace"])
@pytest.mark.parametrize("make", [make_swinv2, make_longformer])
def test_gradient_estimators_run(make: Callable[[], Any], name: str) -> None:
    """They changed shapes under the network, which writes in place."""
    torch.manual_seed(0)
    on = estimation(*make())

    found = mpq.ESTIMATORS.build(name, 0).estimate(on).table.values

    assert np.isfinite(found).all()
    assert (found[:, 0].sum() > 0).all()


@pytest.mark.parametrize("make", [make_swinv2, make_longformer])
def test_sketch_is_the_second_order_change(make: Callable[[], Any]) -> None:
    """In the mean over probes, against products with the Hessian, layer by layer."""
    torch.manual_seed(0)
    on = estimation(*make())

    found = mpq.ESTIMATORS.build("sketch:num_probes=300,temperature=1", 0).estimate(on).table
    exact = mpq.ESTIMATORS.build("hessian-form", 0).estimate(on).table

    large = exact.values > 1e-3 * exact.values.max()
    np.testing.assert_allclose(found.values[large], exact.values[large], rtol=0.4)
    assert found.values.sum() == pytest.approx(exact.values.sum(), rel=0.15)


def estimation(model: nn.Module, data: list[Any]) -> Estimation:
    """What an estimator takes."""
    examples = Calibration.of(data)
    network = Network.of(model.eval(), examples)
    ranges = ActivationRanges.calibrate(network, examples, CHOICES)
    return Estimation(network, examples, Quantizer(ranges), CHOICES)
