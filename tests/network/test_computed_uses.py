"""Weights that a forward computes from bare parameters have the numbers of merged modules."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq.backends import BACKENDS
from mpq.backends.target import Shipped
from mpq.errors import MismatchError, ModelError, PrecisionError
from mpq.network.computed_uses import assigned_uses
from mpq.network.expressions import call_of
from mpq.network.network import Network
from mpq.network.weight_use import Use
from mpq.quantization.precision import ORIGINAL
from tests.generated.snapshot import Snapshot

N, E, O = 10, 8, 4  # noqa: E741 - examples, inputs, outputs


class Bare(nn.Module):
    """Between two layers a product with a weight that is computed in every pass."""

    def __init__(self, shapes: dict[str, Any], run: Callable[["Bare", Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(E, E)
        for name, shape in shapes.items():
            if name == "mask":
                self.register_buffer(name, torch.rand(shape) > 0.4)
            elif isinstance(shape, list):
                setattr(self, name, nn.ParameterList([0.5 * torch.randn(s) for s in shape]))
            else:
                setattr(self, name, nn.Parameter(0.5 * torch.randn(shape)))
        self.last = nn.Linear(O, 3)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.last(self.run(self, self.first(x).relu()).relu())
        return out


class Merged(nn.Module):
    """The same with modules, whose weights are what comes out."""

    def __init__(self, bare: Bare, layers: list[nn.Module], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.last = bare.first, bare.last
        self.merged, self.run = nn.ModuleList(layers), run

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        out: Tensor = self.last(self.run(self.merged, self.first(x).relu()).relu())
        return out


def linear(weight: Tensor) -> nn.Module:
    """A layer of this weight ``[O, I]``."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.detach().clone().contiguous())
    return layer


def conv(weight: Tensor) -> nn.Module:
    """A convolution of this kernel ``[O, I, K]``."""
    layer = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], padding=1, bias=False)
    layer.weight = nn.Parameter(weight.detach().clone())
    return layer


def once(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """One layer."""
    out: Tensor = layers[0](x)
    return out


def convolved(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """A convolution over the features, as over time."""
    out: Tensor = layers[0](x[:, None].expand(-1, 2, -1)).mean(-1)
    return out


def summed(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """Of several layers."""
    return torch.stack([layer(x) for layer in layers], 1).softmax(-1).sum(1)


def quaternion(m: Any) -> Tensor:
    """``[O, E]`` of four parts."""
    r, i, j, k = m.r, m.i, m.j, m.k
    rows = ([r, -i, -j, -k], [i, r, -k, j], [j, k, r, -i], [k, -j, i, r])
    return torch.cat([torch.cat(row, dim=1) for row in rows], dim=0)


def standard(w: Tensor) -> Tensor:
    """A kernel whose channels have mean 0 and spread 1."""
    return (w - w.mean(dim=(1, 2), keepdim=True)) / (w.std(dim=(1, 2), keepdim=True) + 1e-5)


PARTS = dict.fromkeys("rijk", (1, 2))
Case = tuple[dict[str, Any], Callable[[Any, Tensor], Tensor], Callable[[Any], list[nn.Module]], Any]
CASES: dict[str, tuple[Case, list[str]]] = {
    "lora": (
        (
            {"w": (O, E), "a": (2, E), "b": (O, 2)},
            lambda m, x: F.linear(x, m.w + 0.5 * (m.b @ m.a)),
            lambda m: [linear(m.w + 0.5 * (m.b @ m.a))],
            once,
        ),
        ["w"],
    ),
    "masked": (
        (
            {"w": (O, E), "mask": (O, E)},
            lambda m, x: F.linear(x, m.w * m.mask),
            lambda m: [linear(m.w * m.mask)],
            once,
        ),
        ["w"],
    ),
    "divided by a number": (
        (
            {"w": (O, E), "sigma": ()},
            lambda m, x: x @ (m.w / m.sigma).t(),
            lambda m: [linear(m.w / m.sigma)],
            once,
        ),
        ["w"],
    ),
    "normalized": (
        (
            {"w": (E, O), "g": (O,)},
            lambda m, x: x @ (m.g * F.normalize(m.w, dim=0)),
            lambda m: [linear((m.g * F.normalize(m.w, dim=0)).t())],
            once,
        ),
        ["w"],
    ),
    "standardized": (
        (
            {"w": (O, 2, 3)},
            lambda m, x: F.conv1d(x[:, None].expand(-1, 2, -1), standard(m.w), padding=1).mean(-1),
            lambda m: [conv(standard(m.w))],
            convolved,
        ),
        ["w"],
    ),
    "stacked": (
        (
            {"w": [(E, O), (E, O), (E, O)]},
            lambda m, x: torch.einsum("ne,jeo->njo", x, torch.stack(list(m.w))).softmax(-1).sum(1),
            lambda m: [linear(w.t()) for w in m.w],
            summed,
        ),
        ["w.computed.0", "w.computed.1", "w.computed.2"],
    ),
    "stacked, one by one": (
        (
            {"w": [(O, E), (O, E)]},
            lambda m, x: (
                torch.stack([F.linear(x, torch.stack(list(m.w))[i]) for i in range(2)], 1)
                .softmax(-1)
                .sum(1)
            ),
            lambda m: [linear(w) for w in m.w],
            summed,
        ),
        ["w.computed.0", "w.computed.1"],
    ),
    "quaternion": (
        (
            PARTS,
            lambda m, x: F.linear(x, quaternion(m)),
            lambda m: [linear(quaternion(m))],
            once,
        ),
        ["computed"],
    ),
    "transposed sum": (
        (
            {"w": (E, O), "v": (O, E)},
            lambda m, x: F.linear(x, m.w.t() + m.v),
            lambda m: [linear(m.w.t() + m.v)],
            once,
        ),
        ["w"],
    ),
}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[Bare, Merged, Tensor, list[str]]:
    """A network, the same with modules, examples, and the names of the layers."""
    torch.manual_seed(0)
    (shapes, run, layers, again), names = CASES[request.param]
    bare = Bare(shapes, run).eval()
    return bare, Merged(bare, layers(bare), again).eval(), torch.randn(N, E), names


Pair = tuple[Bare, Merged, Tensor, list[str]]


def searched(model: nn.Module, x: Tensor, sensitivity: str) -> mpq.SearchResult:
    """With weights of few and of many bits."""
    task = mpq.Task(model, [x], candidates=["w3a8", "w8a8"])
    return mpq.search(task, {"weight_bytes": "0.7x:w8a8"}, sensitivity=sensitivity)


def test_a_computed_weight_is_a_layer(pair: Pair) -> None:
    """Found, with outputs as before; nothing is left outside, and the model is as before."""
    bare, _, x, names = pair
    before, expected = Snapshot.of(bare), bare(x)

    network = Network.of(bare, [x])

    assert [layer.name for layer in network.layers] == ["first", *names, "last"]
    assert network.coverage is not None
    assert network.coverage.weights_outside == ()
    numbers = sum(t.numel() for t in (*bare.parameters(), *bare.buffers()))
    outside = sum(item.num_elements for item in network.coverage.outside)
    assert network.coverage.covered_elements + outside == network.coverage.num_elements == numbers
    assert torch.allclose(network.module(x), expected, atol=1e-6)
    assert before.changes(Snapshot.of(bare)) == []


@pytest.mark.parametrize("sensitivity", ["measured", "sketch", "weight-error"])
def test_it_costs_what_the_merged_weight_costs(pair: Pair, sensitivity: str) -> None:
    """In bytes and in loss, layer by layer, and so does all that no precision changes."""
    bare, merged, x, _ = pair

    found, expected = searched(bare, x, sensitivity), searched(merged, x, sensitivity)

    np.testing.assert_allclose(
        found.problem.loss.values, expected.problem.loss.values, rtol=1e-4, atol=1e-9
    )
    assert [b.used(found.columns) for b in found.problem.budgets] == [
        b.used(expected.columns) for b in expected.problem.budgets
    ]
    assert [x.macs for x in found.layers] == [x.macs for x in expected.layers]
    assert found.coverage is not None
    assert expected.coverage is not None
    assert found.coverage.constant_bytes == expected.coverage.constant_bytes


def test_a_quantized_network_computes_with_the_rounded_weight(pair: Pair) -> None:
    """As that of modules does; in the original precision nothing changes."""
    bare, merged, x, names = pair
    before = Snapshot.of(bare)
    nearest = replace(searched(bare, x, "weight-error").assignment, weights=None)
    assignment = mpq.Assignment.from_json(nearest.to_json())
    bits = mpq.Precision.parse("w3a32")
    exact = [replace(y, precision=mpq.Precision.parse("fp32")) for y in assignment.layers]
    layers = [replace(y, precision=bits) if y.name in names else y for y in exact]

    same = mpq.quantize(bare, replace(assignment, layers=tuple(exact)))
    found = mpq.quantize(bare, replace(assignment, layers=tuple(layers)))

    assert torch.allclose(same(x), bare(x), atol=1e-6)
    merged_names = ["first", *(f"merged.{i}" for i in range(len(names))), "last"]
    by_module = tuple(
        replace(y, name=name, computed="", is_transposed=False)
        for y, name in zip(layers, merged_names, strict=True)
    )
    expected = mpq.quantize(merged, replace(assignment, layers=by_module, ties=()))
    assert torch.allclose(found(x), expected(x), atol=1e-6)
    assert not torch.allclose(found(x), bare(x), atol=1e-3)
    assert torch.equal(found.get_parameter("first.weight"), bare.first.weight)
    assert torch.equal(copy.deepcopy(found)(x), found(x))
    assert before.changes(Snapshot.of(bare)) == []


def doubled(w: Tensor) -> Tensor:
    """In place, in a copy."""
    found = w.clone()
    found.mul_(2)
    return found


OUTSIDE: dict[str, tuple[dict[str, Any], Callable[[Any, Tensor], Tensor], str]] = {
    "read besides": (
        {"w": (O, E), "v": (O, E)},
        lambda m, x: F.linear(x, m.w + m.v) + m.v.sum(),
        "computed into a weight together with v, which is read besides",
    ),
    "a weight by itself, too": (
        {"w": (O, E)},
        lambda m, x: F.linear(x, m.w * 2) + F.linear(x, m.w),
        "used both by itself and to compute a weight",
    ),
    "of two weights": (
        {"w": (O, E)},
        lambda m, x: F.linear(x, m.w * 2) + F.linear(x, m.w * 3),
        "computed into more than one weight",
    ),
    "in two ways": (
        {"w": (E, E)},
        lambda m, x: (F.linear(x, w := m.w * 2) + x @ w)[:, :O],
        "computed into a weight that is used both as linear of 8x8 and as linear of 8x8 "
        "(transposed)",
    ),
    "given back": (
        {"w": (O, E)},
        lambda m, x: F.linear(x, m.w * 2) + (m.w * 2).numpy(force=True).sum(),
        "computed into a tensor that is read by numpy",
    ),
    "changed in place": (
        {"w": (O, E)},
        lambda m, x: F.linear(x, doubled(m.w)),
        "computed into a tensor that is read by mul_",
    ),
    "changed in place by a function": (
        {"w": (O, E)},
        lambda m, x: F.linear(x, F.relu(m.w.clone(), inplace=True)),
        "computed into a tensor that is read by relu",
    ),
    "from the data": (
        {"w": (O, E)},
        lambda m, x: torch.einsum("ni,noi->no", x, m.w * x[:, None, :].tanh()),
        "read by mul with numbers that are no parameters: data, or made in the forward",
    ),
    "listed": (
        {"w": [(O, E), (O, E)]},
        lambda m, x: F.linear(x, torch.stack(list(m.w.parameters())).sum(0)),
        "computed into a weight, and reached otherwise than by its name (`parameters()`)",
    ),
    "not finite": (
        {"w": (O, E), "sigma": ()},
        lambda m, x: F.linear(x, m.w / (m.sigma - m.sigma)).nan_to_num(0, 0, 0) + x[:, :O],
        "computed into a weight with values that are not finite",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_read_besides_stays_outside_with_a_reason(name: str) -> None:
    """All its sources do, as nobody else may lose them; outputs are as before."""
    torch.manual_seed(0)
    shapes, run, why = OUTSIDE[name]
    bare, x = Bare(shapes, run).eval(), torch.randn(N, E)

    network = Network.of(bare, [x])

    assert [layer.name for layer in network.layers] == ["first", "last"]
    assert network.coverage is not None
    outside = {item.name: item.reason for item in network.coverage.weights_outside}
    assert set(outside) == {n for n, p in bare.named_parameters() if p.ndim > 1 and n[0] in "wv"}
    assert outside[next(iter(sorted(outside, reverse=True)))] == why
    assert torch.equal(network.module(x), bare(x))


class Unused(nn.Module):
    """Two modules' weights, as other parameters change them."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(E, E), nn.Linear(E, O)
        self.a, self.b = nn.Parameter(torch.randn(2, E)), nn.Parameter(torch.randn(E, 2))
        self.register_buffer("mask", torch.rand(O, E) > 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.linear(x, self.first.weight + self.b @ self.a, self.first.bias).relu()
        return F.linear(x, self.last.weight * self.mask, self.last.bias)


def test_weights_of_modules_that_are_not_called() -> None:
    """A layer of theirs holds what comes out."""
    torch.manual_seed(0)
    model, x = Unused().eval(), torch.randn(N, E)
    merged = nn.Sequential(copy.deepcopy(model.first), nn.ReLU(), copy.deepcopy(model.last)).eval()
    with torch.no_grad():
        merged.get_parameter("0.weight").add_(model.b @ model.a)
        merged.get_parameter("2.weight").mul_(model.mask)

    found, expected = searched(model, x, "measured"), searched(merged, x, "measured")

    assert [layer.name for layer in found.layers] == ["first.weight", "last.weight"]
    np.testing.assert_allclose(
        found.problem.loss.values, expected.problem.loss.values, rtol=1e-4, atol=1e-9
    )
    quantized = mpq.quantize(model, found.assignment)
    assert torch.allclose(quantized(x), mpq.quantize(merged, renamed(found, ["0", "2"]))(x))


def renamed(found: mpq.SearchResult, names: list[str]) -> mpq.Assignment:
    """Its assignment, for a network whose layers are modules."""
    layers = zip(found.assignment.layers, names, strict=True)
    plain = tuple(replace(y, name=name, computed="", is_transposed=False) for y, name in layers)
    return replace(found.assignment, layers=plain, ties=())


def test_an_assignment_of_another_network_is_refused() -> None:
    """By name: other sources, of another shape, or functions that no weight is computed with."""
    torch.manual_seed(0)
    (shapes, run, *_), _ = CASES["lora"]
    bare, x = Bare(shapes, run).eval(), torch.randn(N, E)
    found = searched(bare, x, "weight-error").assignment
    other = Bare({"w": (O, E)}, lambda m, x: F.linear(x, m.get_parameter("w"))).eval()

    with pytest.raises(MismatchError, match=r"layer 'w' is computed.*no parameter or buffer 'b'"):
        mpq.quantize(other, found)
    wide = Bare({"w": (O, E), "a": (3, E), "b": (O, 2)}, run).eval()
    with pytest.raises(MismatchError, match="layer 'w' is computed"):
        mpq.quantize(wide, found)
    layers = tuple(
        replace(y, computed=y.computed.replace("Tensor.add", "torch.load")) for y in found.layers
    )
    with pytest.raises(MismatchError, match="'torch.load' is no function of computed weights"):
        mpq.quantize(bare, replace(found, layers=layers))


def test_what_was_not_seen_in_the_data_is_refused() -> None:
    """A source that another batch reads by itself names it."""
    torch.manual_seed(0)

    def run(m: Any, x: Tensor) -> Tensor:
        out = F.linear(x, m.w + m.b @ m.a)
        return out + m.a.sum() if len(x) == 1 else out

    bare = Bare({"w": (O, E), "a": (2, E), "b": (O, 2)}, run).eval()
    network = Network.of(bare, [torch.randn(N, E)])

    with pytest.raises(ModelError, match="a, from which a weight is computed, are used by add"):
        network.module(torch.randn(1, E))


def test_a_target_is_given_what_a_weight_at_fp32_is_computed_from() -> None:
    """Its files then have the names that readers of the network ask for; else the layer's own."""
    torch.manual_seed(0)
    (shapes, run, *_), _ = CASES["lora"]
    bare, x = Bare(shapes, run).eval(), torch.randn(N, E)
    found = searched(bare, x, "weight-error").assignment
    exact = tuple(replace(y, precision=ORIGINAL) for y in found.layers)

    shipped = Shipped.of(bare, replace(found, layers=exact))

    assert shipped.module.state_dict().keys() == bare.state_dict().keys()
    assert "w.weight" in Shipped.of(bare, found).module.state_dict()
    assert torch.equal(shipped.module(x), bare(x))


def test_a_target_of_modules_refuses_it_by_name() -> None:
    """Readers make the user's modules, and none of them is this layer."""
    torch.manual_seed(0)
    (shapes, run, *_), _ = CASES["lora"]
    bare, x = Bare(shapes, run).eval(), torch.randn(N, E)
    layers = searched(bare, x, "weight-error").assignment.layers
    weights = [replace(y, precision=mpq.Precision.parse("w4")) for y in layers if y.computed]

    for name in ("compressed-tensors", "torchao"):
        target: Any = BACKENDS.build(name)
        with pytest.raises(PrecisionError, match="layer 'w' at w4.*: in .* it has no module"):
            target.check(weights, dict(bare.named_modules()))


@pytest.mark.parametrize("name", ["lora", "stacked", "quaternion"])
def test_an_exported_graph_computes_what_the_simulation_does(name: str, tmp_path: Path) -> None:
    """It holds the codes of what comes out; the export compares it with the simulation."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    (shapes, run, *_), _ = CASES[name]
    bare, x = Bare(shapes, run).eval(), torch.randn(N, E)
    found = searched(bare, x, "weight-error").assignment

    mpq.export(found, tmp_path / "out", "onnx-qdq", bare, [x])

    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["num_layers"] == len(found.layers)
    assert told["max_weight_difference"] == 0


LARGE = '{"args":[{"of":"w"},[2000,2000]],"call":"Tensor.repeat","kwargs":{}}'
INNER = f'{{"args":[{LARGE}],"call":"Tensor.sum","kwargs":{{}}}}'.replace(
    LARGE, f'{{"of":{LARGE}}}'
)


@pytest.mark.parametrize(
    "text",
    [
        LARGE, INNER, "[" * 100_000, "[1]", "null", "{", '{"of":"w"}',
        '{"args":[],"call":"torch.load","kwargs":{}}',
        '{"args":[{"of":"none"}],"call":"Tensor.neg","kwargs":{}}',
        f'{{"args":[{{"of":"w"}},{10**30}],"call":"Tensor.pow","kwargs":{{}}}}',
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_an_expression_that_somebody_wrote_is_refused_before_memory_is_taken(text: str) -> None:
    """In a sentence: of other functions, of none, or for billions of numbers on the way."""
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(32, 16))

    with pytest.raises(MismatchError, match="computed from others"):
        assigned_uses(model, [("w", Use("linear", (32, 16)), text)])


def test_what_numbers_decide_the_shape_of_is_no_expression() -> None:
    """Its size could not be told beforehand: a mask as an index is not followed."""
    w, mask = torch.ones(4, 4), torch.ones(4, dtype=torch.bool)

    def named(tensor: Tensor) -> dict[str, str]:
        return {"of": "w" if tensor is w else "mask"}

    assert call_of(Tensor.__getitem__, (w, mask), {}, named) is None
    assert call_of(torch.repeat_interleave, (w, mask.long()), {}, named) is None
    assert call_of(torch.repeat_interleave, (w, 2), {}, named) is not None
    assert call_of(Tensor.__getitem__, (w, 1), {}, named) is not None
