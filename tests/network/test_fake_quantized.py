"""Networks that other packages have prepared for rounding are told so; none of them is imported."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import ModelError
from mpq.network.network import Network


def of_package(module: str, name: str, base: type, **members: Any) -> Any:
    """A class that says it is another package's."""
    return type(name, (base,), {"__module__": module, **members})


def rounded(_: Any, x: Tensor) -> Tensor:
    """To steps of a quarter."""
    return (x * 4).round() / 4


PLACES = {
    "brevitas": ("brevitas.proxy.parameter_quant", "WeightQuantProxy", "disable_quant", True),
    "modelopt": ("modelopt.torch.quantization.nn", "TensorQuantizer", "_disabled", True),
    "nncf": ("nncf.torch.quantization.layers", "SymmetricQuantizer", "enabled", torch.zeros(1)),
}


def layer_of(package: str) -> nn.Module:
    """A linear layer with a quantizer of its weight, as these packages have it."""
    place, name, _, _ = PLACES[package]
    made: Any = of_package(
        f"{package}.nn",
        "QuantLinear",
        nn.Linear,
        forward=lambda self, x: F.linear(x, self.quantizer(self.weight), self.bias),
    )(6, 4)
    made.quantizer = of_package(place, name, nn.Module, forward=rounded)()
    return nn.Sequential(nn.Linear(8, 6), made).eval()


@pytest.mark.parametrize("package", PLACES)
def test_a_fake_quantized_network_is_refused_until_it_is_switched_off(package: str) -> None:
    """By the layer's name and class: rounded numbers would be rounded once more, in silence."""
    model, data = layer_of(package), [torch.randn(6, 8)]
    with pytest.raises(ModelError, match=rf"fake-quantized already: '1' \({package}\.nn\.QuantL"):
        Network.of(model, data)

    _, _, switch, off = PLACES[package]
    vars(model.get_submodule("1.quantizer"))[switch] = off
    assert [layer.name for layer in Network.of(model, data).layers] == ["0", "1"]


def test_a_layer_that_rounds_without_a_quantizer_of_its_own_is_refused() -> None:
    """A network that is nothing else as well."""
    kind = of_package(
        "brevitas.nn",
        "QuantLinear",
        nn.Linear,
        forward=lambda self, x: F.linear(x, rounded(self, self.weight), self.bias),
    )

    with pytest.raises(ModelError, match="fake-quantized already: 'the model itself'"):
        Network.of(kind(8, 4).eval(), [torch.randn(6, 8)])


@pytest.mark.parametrize(
    ("module", "name"), [("modelopt.torch.nn", "Linear"), ("quark.nn", "QuantumLinear")]
)
def test_other_modules_of_such_packages_are_layers(module: str, name: str) -> None:
    """What does not round is not refused."""
    model = nn.Sequential(of_package(module, name, nn.Linear)(8, 4)).eval()

    assert [layer.name for layer in Network.of(model, [torch.randn(6, 8)]).layers] == ["0"]


@pytest.mark.filterwarnings("ignore")
def test_statistics_of_observers_are_named_as_such() -> None:
    """They are most of the checkpoint's bytes, and gone once the network is converted."""
    ao = torch.ao.quantization
    net = nn.Sequential(ao.QuantStub(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    vars(net)["qconfig"] = ao.get_default_qconfig("x86")
    model: nn.Module = ao.prepare(net).eval()
    model(torch.randn(16, 8))
    observed = {n: b for n, b in model.named_buffers() if "activation_post_process" in n}

    coverage = Network.of(model, [torch.randn(6, 8)]).coverage

    assert coverage is not None
    found = {x.name: x.num_bytes for x in coverage.outside if "observer" in x.reason}
    assert found == {n: b.numel() * b.element_size() for n, b in observed.items() if b.numel()}
    share = 100 * sum(found.values()) / coverage.num_bytes
    assert share > 80
    (told,) = (x for x in coverage.sentences if x.startswith("statistics of observers"))
    assert told.endswith(f"together {share:.1f} %")
    assert not any(
        x.startswith("buffers and vectors") and "histogram" in x for x in coverage.sentences
    )
