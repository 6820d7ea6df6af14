"""Operands between layers as layers: found, handed on by their place, and never another one."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mpq.errors import MismatchError, ModelError
from mpq.network.examples import Calibration
from mpq.network.finding_operands import open_operands
from mpq.network.handed_operands import give_operands
from mpq.network.layer import OPERANDS, weighted
from mpq.network.network import Network
from mpq.network.operand import CallShape, Operand
from mpq.network.own_copy import own_copy

SHAPE = (2, 3, 4)


class Two(nn.Module):
    """A function of what two layers make."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """The function of both."""
        return self.function(self.one(x), self.other(x))


class Calling(nn.Module):
    """Computes a function of itself and the input."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(4, 4)
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """The function."""
        return self.function(self, x)


def example(seed: int = 1) -> Tensor:
    """Two examples of three rows."""
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def opened(model: nn.Module, *batches: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """Our own copy with its operands, and what is left of them."""
    module = own_copy(model.eval())
    data = Calibration.of(list(batches or (example(), example(2))))
    return module, open_operands(module, data)


def operands(module: nn.Module) -> dict[str, Operand]:
    """By name."""
    named = module.named_modules()
    return {name: part for name, part in named if isinstance(part, Operand)}


def halve(operand: Operand) -> None:
    """A rounding that nobody takes for none."""
    operand.register_forward_pre_hook(lambda _, args: (args[0] / 2,))


def in_place(x: Tensor, y: Tensor) -> Tensor:
    """Of ``x += y``."""
    x += y
    return x


LEFT: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "add": (lambda x, y: x + y, lambda x, y: x / 2 + y),
    "sub": (lambda x, y: x - y, lambda x, y: x / 2 - y),
    "alpha": (lambda x, y: torch.add(x, y, alpha=3), lambda x, y: x / 2 + 3 * y),
    "iadd": (in_place, lambda x, y: x / 2 + y),
    "sub_": (lambda x, y: x.sub_(y, alpha=2), lambda x, y: x / 2 - 2 * y),
    "mul": (lambda x, y: x * y, lambda x, y: x / 2 * y),
    "mul_": (lambda x, y: x.mul_(y), lambda x, y: x / 2 * y),
    "matmul": (lambda x, y: x @ y.mT, lambda x, y: x / 2 @ y.mT),
    "bmm": (lambda x, y: torch.bmm(x, y.mT), lambda x, y: x / 2 @ y.mT),
    "einsum": (
        lambda x, y: torch.einsum("bik,bjk->bij", x, y), lambda x, y: x / 2 @ y.mT,
    ),
    "baddbmm": (
        lambda x, y: torch.baddbmm(x[:, :, :3], x, y.mT, beta=2, alpha=3),
        lambda x, y: 2 * x[:, :, :3] + 3 * (x / 2 @ y.mT),
    ),
    "broadcast": (lambda x, y: x + y.mean(1, keepdim=True), lambda x, y: x / 2 + y.mean(1, True)),
    "cat": (lambda x, y: torch.cat([x, y], -1), lambda x, y: torch.cat([x, y], -1) / 2),
}  # fmt: skip
"""A function, and what it is where its first operand (of `cat`, the whole) is halved."""


@pytest.mark.parametrize("name", LEFT)
def test_an_operand_is_rounded_where_the_function_reads_it(name: str) -> None:
    """Unrounded the network says what it said; the very operand changes, and nothing else."""
    function, expected = LEFT[name]
    model = Two(function)
    module, left = opened(model)
    x = example()
    with torch.no_grad():
        before, plain = module(x), model(x)
        first, *_ = operands(module).values()
        halve(first)
        after, halved = module(x), expected(model.one(x), model.other(x))

    assert not left
    torch.testing.assert_close(before, plain)
    torch.testing.assert_close(after, halved)


def test_whoever_has_a_tensor_sees_what_is_added_in_place() -> None:
    """Also where the rounded operand is another tensor."""

    def function(x: Tensor, y: Tensor) -> Tensor:
        same = x
        x += y
        return same.exp()

    model = Two(function)
    module, _ = opened(model)
    halve(operands(module)["add.left"])
    x = example()

    with torch.no_grad():
        torch.testing.assert_close(module(x), (model.one(x) / 2 + model.other(x)).exp())
    # Where gradients are asked for, too.
    torch.testing.assert_close(module(x), (model.one(x) / 2 + model.other(x)).exp())


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.tensor([[True, False, True], [False] * 3, [True] * 3])},
    "float": {"attn_mask": torch.tensor([[0.0, -1.0, -torch.inf]] * 3)},
    "scale": {"scale": 0.3},
    "groups": {"enable_gqa": True},
}


@pytest.mark.parametrize("name", MASKS)
def test_attention_is_its_two_products(name: str) -> None:
    """To 1e-6 what torch computes, with the same MACs on either side of a product."""
    options, heads = MASKS[name], 4 if name == "groups" else 2

    def attend(q: Tensor, k: Tensor) -> Tensor:
        q = q.unsqueeze(1).repeat(1, heads, 1, 1) * torch.arange(1.0, heads + 1)[:, None, None]
        k = torch.stack([k, k.flip(-1)], 1)
        return F.scaled_dot_product_attention(q, k, k.flip(1), **options).flatten(1)

    model = Two(attend)
    module, _ = opened(model)
    x = example()

    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x), atol=1e-6, rtol=1e-6)
    found = operands(module)
    assert [*found] == ["qk.query", "qk.key", "pv.probabilities", "pv.values"]
    macs = 2 * heads * 3 * 3 * 4
    assert [part.macs for part in found.values()] == [macs // 2] * 4


def test_attention_written_out_has_the_names_of_attention() -> None:
    """``nn.MultiheadAttention``, which our copy writes out, for one."""
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    module, left = opened(model)

    assert [*operands(module)] == [
        "self_attn.qk.query", "self_attn.qk.key", "self_attn.pv.probabilities",
        "self_attn.pv.values", "add.left", "add.right", "add_2.left", "add_2.right",
    ]  # fmt: skip
    assert not left
    with torch.no_grad():
        torch.testing.assert_close(module(example()), model(example()))


LEFT_ALONE: dict[str, tuple[nn.Module, list[str], dict[str, str]]] = {
    "a scalar": (Calling(lambda m, x: m.fc(x) * 2 + x.new_tensor(1.0)), [], {}),
    "positions": (
        Calling(lambda m, x: m.fc(x + m.at), at=nn.Parameter(torch.ones(3, 4))),
        ["add.left"], {"add.right": "it depends on no input"},
    ),
    "computed positions": (
        Calling(lambda m, x: m.fc(x) + torch.arange(4.0)),
        ["add.left"], {"add.right": "it depends on no input"},
    ),
    "a factor": (
        Calling(lambda m, x: m.fc(x) * m.by, by=nn.Parameter(torch.ones(4))),
        [], {"mul.left": "it is multiplied by what depends on no input"},
    ),
    "a mask": (
        Calling(lambda m, x: m.fc(x) + torch.where(x > 0, 0.0, -torch.inf)),
        [], dict.fromkeys(("add.left", "add.right"), "it meets a mask"),
    ),
    "a masked concatenation": (
        Calling(lambda m, x: torch.cat([m.fc(x), torch.where(x > 0, x, -torch.inf)], -1)),
        [], {f"cat.part_{i}": "it meets a mask" for i in (1, 2)},
    ),
    "a norm": (Calling(lambda m, x: m.fc(m.norm(x)), norm=nn.RMSNorm(4)), [], {}),
    "an activation function": (
        Calling(
            lambda m, x: m.act(m.fc(x)),
            act=type("Gate", (nn.Module,), {"forward": lambda _, x: x * x.sigmoid()})(),
        ), [], {},
    ),
    "halves of one tensor": (
        Calling(lambda m, x: torch.cat([-m.fc(x)[..., 2:], m.fc(x)[..., :2]], -1)), ["cat.whole"],
        {},
    ),
    "parts of one tensor": (
        Calling(lambda m, x: (lambda y: torch.cat([-y[..., 2:], y[..., :2]], -1))(m.fc(x))), [], {},
    ),
    "another function": (
        Calling(lambda m, x: torch.maximum(m.fc(x), x)), [],
        {"maximum": "the function is not covered"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_no_operand_is_left_and_named(name: str) -> None:
    """Constants, masks, and what belongs to a norm or an activation function."""
    model, expected, why = LEFT_ALONE[name]

    module, left = opened(model)

    assert [*operands(module)] == expected
    assert left == why


def test_a_shared_module_has_one_operand_for_both_calls() -> None:
    """Its ranges are of both."""
    model = nn.Sequential(*[Two(lambda x, y: x + y)] * 2)

    network = Network.of(model.eval(), [example()], operands=True)

    calls = {layer.name: layer.calls for layer in network.layers if layer.is_operand}
    assert calls == {"0.add.left": 2, "0.add.right": 2}


def test_a_tensor_that_two_additions_read_is_tied() -> None:
    """It is rounded once; a layer that reads it has other candidates, and is not tied to them."""

    def function(m: Any, x: Tensor) -> Tensor:
        y = m.fc(x)
        found: Tensor = (y + x) + (m.fc(y) + y)
        return found

    network = Network.of(Calling(function).eval(), [example()], operands=True)

    assert ("add.left", "add_2.right") in network.ties
    assert all(set(tie) <= {x.name for x in network.layers if x.is_operand} for tie in network.ties)


def test_operands_are_known_by_what_they_take() -> None:
    """No weights, MACs of products alone, shared by both sides, and bits of the tensor's own."""
    network = Network.of(
        Two(lambda x, y: (x @ y.mT) + x[..., :3]).eval(), [example()], operands=True
    )

    found = {layer.name: layer for layer in network.layers if layer.is_operand}

    assert {x.kind for x in found.values()} <= set(OPERANDS)
    assert {x.num_weights for x in found.values()} == {0}
    assert [found[f"matmul.{side}"].macs for side in ("left", "right")] == [18, 18]
    assert [x.name for x in weighted(network.layers)] == ["one", "other"]


def swapping(module: Any, x: Tensor) -> Tensor:
    """Two additions, whose order depends on the input."""
    y = module.fc(x)
    if x.sum() > 0:
        a = y + x
        found: Tensor = a + y.abs()
    else:
        a = y + y.abs()
        found = a + x
    return found


def test_another_order_in_another_batch_is_refused() -> None:
    """With the line, while it is searched; and in the quantized network, whatever it is shown."""
    model, up, down = Calling(swapping), example().abs(), -example().abs()

    with pytest.raises(ModelError, match=r"calls add at test_operands.py:\d+ \(swapping\), which"):
        opened(model, up, down)
    module, _ = opened(model, up, up)
    module(up)
    with pytest.raises(ModelError, match="calls add number 1 at test_operands.py"):
        module(down)
    module(up)  # the error has left nothing behind


def test_more_or_fewer_calls_are_refused() -> None:
    """Which leave no doubt in a process that has seen no other, either."""

    def branching(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.fc(x) + x
        return y + y.abs() if x.sum() > 0 else y

    up, down = example().abs(), -example().abs()
    with pytest.raises(ModelError, match="calls add on 1 lines and on 2"):
        opened(Calling(branching), up, down)
    twice, _ = opened(Calling(branching), up)
    with pytest.raises(ModelError, match="calls add on 1 lines and not on 2"):
        twice(down)
    once, _ = opened(Calling(branching), down)
    with pytest.raises(ModelError, match="calls add on more than 1 lines, at test_operands.py"):
        once(up)


def test_a_loop_has_operands_for_all_its_turns() -> None:
    """However many there are, also in a process that knows the assignment alone."""

    def looping(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.fc(x)
        for row in x.unbind(1):
            y = y + row[:, None]
        found: Tensor = y + x
        return found

    model, long = Calling(looping), torch.randn(2, 5, 4)
    found, _ = opened(model, example(), long)
    shapes = {n: CallShape.of(x.kind, x.weight.shape) for n, x in operands(found).items()}
    again = own_copy(model)
    give_operands(again, shapes)

    assert [*shapes] == ["add.left", "add.right", "add_2.left", "add_2.right"]
    assert {(shape.place, shape.count) for shape in shapes.values()} == {(1, 2), (2, 2)}
    for module in (found, again):
        halve(operands(module)["add.right"])
        for x in (long, example(), long):
            expected = model.fc(x) + x.sum(1, keepdim=True) / 2 + x
            torch.testing.assert_close(module(x), expected)


def test_an_error_of_the_network_is_its_own() -> None:
    """And the next pass is as any other."""
    model = Two(lambda x, y: x + y)
    module, _ = opened(model)

    with pytest.raises(RuntimeError, match="shape"):
        module(torch.zeros(2, 5))
    torch.testing.assert_close(module(example()), model(example()))


def test_what_hooks_compute_is_no_operation_of_the_network() -> None:
    """A hook that adds tensors shifts no place."""
    model = Two(lambda x, y: x + y)
    module, _ = opened(model)
    for part in (module, module.get_submodule("one")):
        part.register_forward_pre_hook(lambda _, args: (args[0] + args[0] * 0,))
    halve(operands(module)["add.left"])
    x = example()

    torch.testing.assert_close(module(x), model.one(x) / 2 + model.other(x))


def test_a_copy_and_a_pickled_network_hand_on_alike() -> None:
    """State dicts know nothing of operands."""
    module, _ = opened(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    x = example()
    expected = module(x)

    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again(x), expected)
        assert [*operands(again)] == [*operands(module)]
        assert not any(".left" in key or "qk" in key for key in again.state_dict())


def test_operands_are_given_by_name_and_place() -> None:
    """As an assignment has them; a network without the module is refused."""
    model = Two(lambda x, y: (x + 1) * y)
    module = own_copy(model.eval())

    give_operands(module, {"mul.right": CallShape("mul", 1, 1)})

    halve(operands(module)["mul.right"])
    x = example()
    torch.testing.assert_close(module(x), (model.one(x) + 1) * model.other(x) / 2)
    with pytest.raises(MismatchError, match=r"lacks the module .* 'there.add.left'"):
        give_operands(own_copy(model), {"there.add.left": CallShape("add", 1, 1)})


def test_a_module_of_that_name_keeps_it() -> None:
    """The operation is called otherwise."""
    model = Calling(lambda m, x: m.add(m.fc(x)) + x, add=nn.Linear(4, 4))

    module, _ = opened(model)

    assert [*operands(module)] == ["add_.left", "add_.right"]
    torch.testing.assert_close(module(example()), model(example()))
