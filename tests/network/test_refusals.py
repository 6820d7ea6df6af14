"""What cannot be searched is named in a sentence that says what to do, unless it is excluded."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.cli.loading import load_model
from mpq.errors import ModelError
from mpq.network.dataflow import Dataflow
from mpq.network.examples import Batch
from mpq.network.modules import check_model
from mpq.network.network import Network

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """``odd`` inside a network of two plain layers; ``function`` calls it."""

    def __init__(self, odd: nn.Module, function: Any = lambda odd, x: odd(x)) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.odd = odd
        self.last = nn.Linear(4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.function(self.odd, self.first(x)))
        return found


class Packed(nn.Module):
    """A layer of another package: codes and scales in buffers."""

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        return x


def packed(name: str, **buffers: Tensor) -> nn.Module:
    """A packed layer of a class of that name."""
    made: nn.Module = type(name, (Packed,), {})(**buffers)
    return made


class Coded(nn.Parameter):
    """As bitsandbytes' parameters: a subclass that holds codes."""


def bits_and_bytes(name: str, dtype: torch.dtype) -> nn.Module:
    """A subclass of ``nn.Linear`` whose weight is a parameter of a class of its own."""
    layer: nn.Module = type(name, (nn.Linear,), {"forward": lambda _, x: x})(4, 4)
    layer.weight = Coded(torch.ones(8, 1, dtype=dtype), requires_grad=False)
    return layer


def torchao(linear: nn.Linear) -> nn.Module:
    """Its weight is a tensor of a class of torchao's."""
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(linear)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model.get_submodule("0")


def dynamic() -> nn.Module:
    """torch's own dynamic quantization, through its modules."""
    from torch.ao.nn.quantized.dynamic import Linear

    return Linear(4, 4)


def scripted(module: nn.Module, *shape: int) -> Any:
    """TorchScript of a module."""
    return torch.jit.trace(module.eval(), torch.randn(shape))


def quietly(made: Iterator[Any]) -> list[Any]:
    """What torch deprecates warns already where it is made, and people still have it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(made)


def complex_linear(odd: nn.Module, x: Tensor) -> Tensor:
    """Through complex numbers and back."""
    found: Tensor = odd(torch.complex(x, x)).real
    return found


def keyword(odd: nn.Module, x: Tensor) -> Tensor:
    """Called by keyword."""
    found: Tensor = odd(input=x)
    return found


def attention(odd: nn.Module, x: Tensor) -> Tensor:
    """Self attention over one token."""
    found: Tensor = odd(x[:, None], x[:, None], x[:, None])[0][:, 0]
    return found


def buffered() -> nn.Module:
    """A layer whose weight is a buffer."""
    layer = nn.Linear(4, 4)
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight)
    return layer


def odd_networks() -> Iterator[Any]:
    """Networks with one part that cannot be quantized, and what is said."""
    yield pytest.param(
        Net(nn.Linear(4, 4, dtype=torch.complex64), complex_linear),
        r"weight of layer 'odd' is complex \(torch.complex64\).*real and imaginary",
        id="complex",
    )
    yield pytest.param(Net(buffered()), "'odd' is not a parameter but", id="buffer")
    yield pytest.param(
        Net(packed("QuantLinear", qweight=torch.ones(2, 4, dtype=torch.int32))),
        r"layer 'odd' is quantized already \(QuantLinear\); search the float network",
        id="gptq",
    )
    for name in ("WQLinear_GEMM", "MarlinQuantLinear", "HQQLinear"):
        yield pytest.param(
            Net(packed(name, codes=torch.ones(2, 4, dtype=torch.int32))),
            rf"quantized already \({name}\)",
            id=name,
        )
    yield pytest.param(
        Net(bits_and_bytes("Linear4bit", torch.uint8)), r"already \(Linear4bit\)", id="4 bit"
    )
    yield pytest.param(
        Net(bits_and_bytes("Linear8bitLt", torch.float16)), r"already \(Linear8bitLt\)", id="8 bit"
    )
    stored = nn.Linear(4, 4)
    stored.weight = nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    yield pytest.param(
        Net(stored, lambda odd, x: F.linear(x, odd.weight.float())),
        "",  # never called: it is only named
        id="float8 without a call",
    )
    yield pytest.param(Net(dynamic()), r"already \(Linear\)", id="dynamic")
    yield pytest.param(
        Net(scripted(nn.Linear(4, 4), 2, 4)),
        "'odd' is TorchScript.*give the nn.Module that it was made from",
        id="script",
    )
    exported = torch.export.export(nn.Linear(4, 4).eval(), (torch.randn(5, 4),))
    module = exported.module()
    module.train = lambda _=True: module  # type: ignore[method-assign, assignment]
    yield pytest.param(Net(module), "'odd' is an exported program", id="exported")


@pytest.mark.parametrize(("model", "message"), quietly(odd_networks()))
def test_one_odd_part_is_refused_by_name_unless_excluded(model: nn.Module, message: str) -> None:
    """The sentence names the part; with it excluded, all others are searched."""
    model, x = model.eval(), torch.randn(5, 4)

    if message:
        with pytest.raises(ModelError, match=message):
            Network.of(model, [x])
    network = Network.of(model, [x], exclude=["odd"] if message else [])
    included = Network.of(model, [x], include=["first"])

    assert [layer.name for layer in network.layers] == ["first", "last"]
    assert [layer.name for layer in included.layers] == ["first"]
    with torch.no_grad():
        assert torch.equal(network.module(x), model(x))


def test_a_tensor_of_torchao_is_refused_unless_excluded() -> None:
    """Its numbers are codes, though it says that it is float32."""
    model, x = Net(torchao(nn.Linear(4, 4))).eval(), torch.randn(5, 4)

    with pytest.raises(ModelError, match=r"'odd' is quantized already \(Int8Tensor\)"):
        Network.of(model, [x])
    network = Network.of(model, [x], exclude=["odd"])

    with torch.no_grad():
        assert torch.equal(network.module(x), model(x))


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_an_attention_that_stays_closed_computes_what_it_did(options: dict[str, bool]) -> None:
    """Whether it is searched or left out, the network's outputs are the model's."""
    odd = nn.MultiheadAttention(4, 2, batch_first=True, **options)
    model, x = Net(odd, attention).eval(), torch.randn(5, 4)

    network = Network.of(model, [x], exclude=["odd*"])

    assert [layer.name for layer in network.layers] == ["first", "last"]
    with torch.no_grad():
        assert torch.allclose(network.module(x), model(x), atol=1e-6)


def test_a_layer_called_by_keyword_can_be_left_out() -> None:
    """It keeps its numbers, and the others are searched."""
    model, x = Net(nn.Linear(4, 4), keyword).eval(), torch.randn(5, 4)

    network = Network.of(model, [x], exclude=["odd"])

    assert [layer.name for layer in network.layers] == ["first", "last"]
    assert network.uncalled == ()


def test_a_sharded_network_is_told_to_gather() -> None:
    """One process holds a part of every weight: nothing can be searched there."""
    model = Net(nn.Linear(4, 4)).eval()
    sharded = type("DTensor", (nn.Parameter,), {})(torch.ones(4, 4))
    model.get_submodule("odd").weight = sharded

    with pytest.raises(ModelError, match=r"'odd.weight' is spread over several.*full_tensor"):
        Network.of(model, [torch.randn(5, 4)])


def test_several_odd_parts_are_counted() -> None:
    """One sentence, and how many more there are."""
    model = nn.Sequential(*(buffered() for _ in range(3)), nn.Linear(4, 4)).eval()

    with pytest.raises(ModelError, match=r"layer '0' is not.*\(and 2 more such\)"):
        Network.of(model, [torch.randn(5, 4)])


def test_a_simulated_quantization_is_no_packed_one() -> None:
    """A class called QuantLinear that holds a float weight is a layer as any other."""
    simulated: nn.Module = type("QuantLinear", (nn.Linear,), {})(4, 4)

    network = Network.of(Net(simulated).eval(), [torch.randn(5, 4)])

    assert [layer.name for layer in network.layers] == ["first", "odd", "last"]


def test_a_script_without_matrices_is_no_hindrance() -> None:
    """A scripted activation holds nothing that could be quantized."""
    model = Net(scripted(nn.ReLU(), 2, 4)).eval()

    network = Network.of(model, [torch.randn(5, 4)])

    assert [layer.name for layer in network.layers] == ["first", "last"]


def programs() -> Iterator[Any]:
    """Whole models that are programs, and what is said."""
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    yield pytest.param(
        scripted(plain, 2, 4), "the model is TorchScript.*give the nn.Module", id="script"
    )
    exported = torch.export.export(plain, (torch.randn(5, 4),))
    yield pytest.param(exported, "this is an exported program.*give the nn.Module", id="program")
    yield pytest.param(
        exported.module(), "the model is an exported program.*give the nn.Module", id="its module"
    )
    yield pytest.param(
        torch.export.unflatten(exported), "the model is an exported program", id="unflattened"
    )
    yield pytest.param(nn.Sequential(dynamic()).eval(), "'0' is quantized already", id="quantized")
    yield pytest.param(dynamic().eval(), "the model is quantized already", id="one layer")
    yield pytest.param({"weight": torch.ones(2)}, "expected an nn.Module, got a dict", id="state")


@pytest.mark.parametrize(("model", "message"), quietly(programs()))
def test_a_program_is_told_what_it_is(model: Any, message: str) -> None:
    """TorchScript and exported programs have no layers: their source is asked for."""
    with pytest.raises(ModelError, match=message):
        Network.of(model, [torch.randn(5, 4)])


def test_the_command_line_tells_of_exported_programs(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads to an exported program is not called as a function."""
    (tmp_path / "exported_net.py").write_text(
        "import torch\n"
        "program = torch.export.export(torch.nn.Linear(4, 4).eval(), (torch.ones(1, 4),))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModelError, match="exported_net:program: this is an exported program"):
        load_model("exported_net:program")


def test_a_graph_of_modules_is_searched() -> None:
    """``fx.symbolic_trace`` keeps the modules, and is no exported program."""
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)))

    network = Network.of(traced.eval(), [torch.randn(5, 4)])

    assert [layer.name for layer in network.layers] == ["0", "2"]


def test_complex_numbers_are_counted_as_two() -> None:
    """A filter of 6 complex numbers takes as much as 12 real ones, in memory and while it runs."""

    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6, bias=False)
            self.filter = nn.Parameter(torch.ones(6, dtype=torch.complex64))
            self.register_buffer("statistics", torch.ones(3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.fft.fft(self.fc(x)).mul(self.filter).real
            return found

    model, x = Filter().eval(), torch.randn(5, 6)

    network = Network.of(model, [x])

    assert network.num_unquantized == 2 * 6 + 2 * 3
    lifetimes = Dataflow.of(copy.deepcopy(model), Batch((x,)), network.layers).lifetimes
    assert max(buffer.elements for buffer in lifetimes.buffers) == 12


def test_sparse_parameters_are_refused_by_name() -> None:
    """Torch's own error is a page long, and names no parameter."""
    model = nn.Linear(4, 4).eval()
    model.weight = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    with pytest.raises(ModelError, match="'weight' is sparse"):
        check_model(model)


def test_parameters_made_in_inference_mode_are_refused_by_name() -> None:
    """They cannot be read outside of it."""
    with torch.inference_mode():
        model = nn.Linear(4, 4).eval()
    with pytest.raises(ModelError, match=r"'weight' was made in inference_mode"):
        check_model(model)


def _prepared(by: str) -> nn.Module:
    """Two layers as torch or torchao prepare them for quantization-aware training."""
    ao = torch.ao.quantization
    net = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    if by == "torchao":
        from torchao.quantization import quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

        rounds = IntxFakeQuantizeConfig(getattr(torch, "int4"), group_size=8)  # noqa: B009
        quantize_(net, QATConfig(weight_config=rounds, step="prepare"))
        return net
    made: nn.Module
    if by == "fx":
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        mapping = ao.get_default_qat_qconfig_mapping("x86")
        made = prepare_qat_fx(net, mapping, (torch.randn(4, 32),))
    else:
        vars(net)["qconfig"] = ao.get_default_qat_qconfig("x86")
        made = ao.prepare_qat(net)
    made(torch.randn(16, 32))
    return made


@pytest.mark.parametrize("by", ["eager", "fx", "torchao"])
@pytest.mark.parametrize("is_observing", [True, False])
def test_a_network_that_is_prepared_for_training_with_rounding_is_said_to_be_one(
    by: str, is_observing: bool
) -> None:
    """Also where only the rounding is on, which repeats; with both switched off it is searched."""
    if by == "torchao":
        pytest.importorskip("torchao")
    model, data = _prepared(by), [torch.randn(6, 32)]
    ao = torch.ao.quantization
    if not is_observing:
        model.eval().apply(ao.disable_observer)
    with pytest.raises(ModelError, match="prepared for quantization-aware training: .* float netw"):
        Network.of(model, data)

    model.eval().apply(ao.disable_observer).apply(ao.disable_fake_quant)
    for module in model.modules():
        if by == "torchao" and hasattr(module, "enabled"):
            vars(module)["enabled"] = False
    assert [layer.name for layer in Network.of(model, data).layers] == ["0", "2"]
