"""Fisher information of every number, against gradients of one example after the other."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mpq
from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.sensitivity import Estimation
from mpq.sensitivity.passes.number_information import number_information


def test_of_a_network_that_is_sure_of_its_labels() -> None:
    """Then drawn labels are those that it says: no other one is drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(200)
    x = torch.randn(10, 2, 3, 3)
    network, data = Network.of(model, [x]), Calibration([x[:6], x[6:]])
    candidates = (Precision.parse("w4"),)
    on = Estimation(network, data, Quantizer(ActivationRanges({})), candidates)

    found = number_information(on).values

    labels = model(x).argmax(1)
    expected = {name: torch.zeros_like(model.get_parameter(f"{name}.weight")) for name in "02"}
    for each, label in zip(x, labels, strict=True):
        loss = F.cross_entropy(model(each[None]), label[None])
        for name, total in expected.items():
            weight = model.get_parameter(f"{name}.weight")
            total += torch.autograd.grad(loss, weight, retain_graph=True)[0].square() / 10
    for name, total in expected.items():
        assert found[name].shape == (3, 8 if name == "0" else 12, 1)
        torch.testing.assert_close(found[name][:, :, 0], total.flatten(1), rtol=1e-3, atol=1e-9)


def test_codes_are_found_with_it() -> None:
    """Levels of a codebook are those by Fisher information; kept weights stay as they were."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(12, 5)).eval(), torch.randn(30, 12)
    task = mpq.Task(
        model, [x], [x], candidates=["wcb2", "wcb2+s10%"], rounding="weighted-nearest",
        rules=mpq.Rules(fix={"*": "wcb2+s10%"}),
    )  # fmt: skip

    quantized = mpq.quantize(model, mpq.search(task, ["effective_bits=32"]).assignment)

    rows, kept = (
        quantized.get_parameter("0.weight").detach(),
        model.get_parameter("0.weight").detach(),
    )
    same = (rows - kept).abs() <= 1e-3 * kept.abs()
    assert int(same.sum()) >= 6  # a tenth of 60, and a level of its own may be as near
    assert all(len(row[~own].unique()) <= 4 for row, own in zip(rows, same, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_without_gradients_inputs_count() -> None:
    """Rather than nothing, and it is said."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(12, 5)), torch.randn(30, 12)
    model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
    task = mpq.Task(model.eval(), [x], [x], candidates=["wcb2"], rounding="weighted-nearest")

    found = mpq.search(task, ["effective_bits=32"], sensitivity="weight-error")

    assert found.assignment.weights is not None
