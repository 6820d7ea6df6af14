"""Wrapped models: the layers are those of what is wrapped, under their plain names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import mpq
from mpq.backends.simulate import Simulate
from mpq.errors import ModelError
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain() -> nn.Sequential:
    """A network of three layers, one of them inside a block."""
    block = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    return nn.Sequential(nn.Linear(4, 6), block, nn.Linear(6, 3)).eval()


def compiled(model: nn.Module) -> nn.Module:
    """As ``torch.compile`` returns it; nothing is compiled before it is called."""
    found: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return found


def fsdp(module: nn.Module) -> nn.Module:
    """A module of that name in that place: the real one needs a group of processes."""

    def init(self: nn.Module, inner: nn.Module) -> None:
        nn.Module.__init__(self)
        self._fsdp_wrapped_module = inner

    names = {"__module__": "torch.distributed.fsdp.fully_sharded_data_parallel", "__init__": init}
    wrapper: nn.Module = type("FullyShardedDataParallel", (nn.Module,), names)(module)
    return wrapper


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    compiled,
    nn.DataParallel,
    AveragedModel,
    fsdp,
    lambda model: compiled(nn.DataParallel(model)),
]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["compile", "parallel", "averaged", "fsdp", "both"])
@pytest.mark.parametrize("where", ["", "1", "1.0"])
def test_a_wrapped_network_is_the_plain_one(
    wrap: Callable[[nn.Module], nn.Module], where: str
) -> None:
    """Layers, fingerprint and outputs are the plain network's, however deep the wrapper is."""
    model, x = plain(), torch.randn(5, 4)
    expected = Network.of(model, [x])
    if where:
        model.set_submodule(where, wrap(model.get_submodule(where)))
    wrapped = model if where else wrap(model)

    found = Network.of(wrapped.eval(), [x])

    assert found.layers == expected.layers
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(found.module(x), expected.module(x))
    assert list(found.module.state_dict()) == list(expected.module.state_dict())


def test_the_wrapped_network_is_left_as_found() -> None:
    """The wrapper stays where it is, in the user's model."""
    model = plain()
    model.set_submodule("1", compiled(model.get_submodule("1")))
    inside = model.get_submodule("1")

    Network.of(model, [torch.randn(5, 4)])

    assert model.get_submodule("1") is inside
    assert list(model.state_dict())[2] == "1._orig_mod.0.weight"


def test_code_that_goes_through_the_wrapper_still_works() -> None:
    """``self.net.module(x)`` in a forward finds the module, though the wrapper is gone."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.DataParallel(plain())

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net.module(x)
            return found

    layers = mpq.find_layers(Around().eval(), [torch.randn(5, 4)])

    assert [layer.name for layer in layers] == ["net.0", "net.1.0", "net.2"]


def test_a_wrapper_in_training_mode_around_a_network_in_evaluation_mode() -> None:
    """``DataParallel(model.eval())`` is in training mode itself, which changes no answer."""
    network = Network.of(nn.DataParallel(plain()), [torch.randn(5, 4)])

    assert len(network.layers) == 3


def test_a_layer_in_training_mode_is_called_by_its_plain_name() -> None:
    """Messages have no ``_orig_mod.`` either."""
    model = plain()
    model.get_submodule("1.0").train()

    with pytest.raises(ModelError, match=r"training mode \(1\.0\)"):
        Network.of(compiled(model), [torch.randn(5, 4)])


def test_hooks_of_a_wrapper_are_not_lost_silently() -> None:
    """What a hook on the wrapper changes would be missing in our copy."""
    wrapped = nn.DataParallel(plain()).eval()
    wrapped.register_forward_hook(lambda _, __, output: output * 2)

    with pytest.raises(ModelError, match="a DataParallel has forward hooks of its own"):
        Network.of(wrapped, [torch.randn(5, 4)])


def test_a_module_compiled_in_place_runs_plainly_in_the_copy() -> None:
    """``module.compile()`` keeps the module; the copy has no compiled call."""
    model: Any = plain()
    model.compile(backend="eager")

    copied: Any = share_parameters(model)

    assert copied._compiled_call_impl is None
    assert model._compiled_call_impl is not None


def test_an_assignment_of_the_plain_network_quantizes_the_wrapped_one() -> None:
    """Names are the same, so that the assignment fits; the rounded weights are equal."""
    model = plain()
    w4 = Precision.parse("w4")
    layers = tuple(
        AssignedLayer(layer.name, layer.kind, layer.weight_shape, w4)
        for layer in mpq.find_layers(model, [torch.randn(5, 4)])
    )

    found = Simulate().quantize(compiled(model), Assignment(layers))

    expected = Simulate().quantize(model, Assignment(layers)).state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(found.state_dict()[name], value) for name, value in expected.items())


def test_a_flat_parameter_of_fsdp_gets_a_sentence() -> None:
    """Its modules have neither their parameters nor the shapes of these."""
    model = plain()
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    flat._is_flat_param = True  # type: ignore[attr-defined]  # as FSDP marks it
    for module in model.modules():
        module._parameters.clear()
    wrapped = fsdp(model)
    model.register_parameter("_flat_param", flat)

    with pytest.raises(ModelError, match="one, without their shapes; wrap with use_orig_params"):
        mpq.find_layers(wrapped, [torch.randn(2, 4)])
