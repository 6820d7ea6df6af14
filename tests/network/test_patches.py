"""Patches give the network's own outputs, and take the memory and arithmetic that is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner, Result

import mpq
from mpq import demo
from mpq.cli.__main__ import app
from mpq.errors import InputError, ModelError, UnknownNameError
from mpq.hardware_profiles.peak_ram import peak_ram_bytes
from mpq.network.examples import Batch
from mpq.network.network import Network
from mpq.network.patches import (
    FoundPatches,
    OutlierPatches,
    PatchRules,
    find_patches,
    largest_difference,
    outlier_share,
    patch_classes,
    run_in_patches,
)
from mpq.network.patches.chain import Chain
from mpq.network.patches.recording import Recorded
from mpq.network.patches.windows import Span
from mpq.quantization.precision import Precision

ALL = PatchRules(most_patches=3, most_recomputed=100.0)


def trained(net: nn.Module) -> nn.Module:
    """In float64, with statistics and weights that are not those of a new BatchNorm."""
    torch.manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) - (0.0 if "var" in name else 0.4))
    return net.double().eval()


def image(*shape: int) -> Tensor:
    """Two of them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64)


class Residual(nn.Module):
    """Two blocks of ResNet, the second with a stride and a shortcut of its own, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.short = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.relu_(self.norm(self.stem(x)))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        x = torch.relu_(self.third(x)).add_(self.short(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Odd(nn.Module):
    """What images meet besides: pads, kernels, pools and steps of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(2, 3, (5, 2), stride=(2, 1), padding=(4, 1), dilation=(2, 1))
        self.even = nn.Conv2d(3, 3, 4, padding="same")
        self.most = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.steep = nn.PReLU(6)
        self.last = nn.AvgPool2d((2, 3), divisor_override=5)
        self.place = nn.Parameter(torch.zeros(6, 9, 1))

    def forward(self, x: Tensor) -> Tensor:
        """An image."""
        x = F.pad(self.wide(x), (2, 3, 1, 0), value=0.5)
        x = self.even(x)
        x = torch.cat([self.most(x), F.hardtanh_(self.most(x.detach()) * 2)], 1)
        x = self.steep(self.mean(x)) + self.place
        return self.last(F.silu(x))  # type: ignore[no-any-return]


def depthwise() -> nn.Module:
    """Convolutions of one channel each, with steps, between those of one position."""
    parts = []
    for channels, step in ((3, 1), (5, 2), (4, 2)):
        parts += [
            nn.Conv2d(channels, channels, 3, step, 1, groups=channels),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, {3: 5, 5: 4, 4: 2}[channels], 1),
        ]
    return nn.Sequential(*parts)


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "residual": (Residual, image(3, 9, 11)),
    "depthwise": (depthwise, image(3, 17, 14)),
    "odd": (Odd, image(2, 29, 17)),
}


# An even kernel with padding="same" is padded by torch itself.
EVEN = pytest.mark.filterwarnings("ignore:Using padding='same'")


@EVEN
@pytest.mark.parametrize("name", NETS)
def test_patches_give_the_networks_outputs(name: str) -> None:
    """At every cut, by two and by three patches per axis; halos and borders included."""
    make, x = NETS[name]
    net = trained(make())

    found = find_patches(net, x, ALL)

    assert len(found.plans) > 2
    assert max(largest_difference(net, x, plan) for plan in found.plans) < 1e-12


@EVEN
def test_every_network_is_patched_as_far_as_it_goes() -> None:
    """Up to what needs the whole plane, or to the output."""
    ends = {name: find_patches(trained(make()), x, ALL) for name, (make, x) in NETS.items()}

    assert {name: x.end.partition(" reads")[0] for name, x in ends.items()} == {
        "residual": "mean in the network", "depthwise": "", "odd": "",
    }  # fmt: skip
    assert max(x.position for x in ends["odd"].plans) == 13


@pytest.mark.parametrize("fails", ["forward", "pre_hook"])
def test_operations_keep_their_names_behind_an_error_that_is_caught(fails: str) -> None:
    """A part that fails, in its ``forward`` or before it, gives no name to what runs afterwards."""

    class Failing(nn.Module):
        """Takes nothing."""

        def forward(self, x: Tensor) -> Tensor:
            """Nothing."""
            raise ValueError(x.shape)

    class Trying(nn.Module):
        """Goes on without a part that fails."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.part = nn.Conv2d(3, 2, 3), Failing()
            if fails == "pre_hook":
                self.part.register_forward_pre_hook(lambda part, args: part.forward(*args))

        def forward(self, x: Tensor) -> Tensor:
            """An image."""
            x = self.first(x)
            try:
                return self.part(x)  # type: ignore[no-any-return]
            except ValueError:
                return torch.relu(x * 2)

    net = nn.Sequential(Trying(), nn.Conv2d(2, 2, 1)).eval()

    recorded = Recorded.of(net, torch.ones(1, 3, 8, 8))

    assert [x.name for x in recorded.operations] == ["0.first", "mul in 0", "relu in 0", "1"]
    assert not any(m._forward_hooks for m in net.modules())


def test_windows_are_what_gradients_reach() -> None:
    """The receptive field, by differentiating one patch of a network without negative numbers."""
    layers = [
        nn.Conv2d(1, 2, 3, 2, 1),
        nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(2, 1, (1, 5), padding=(0, 2)),
    ]
    net = nn.Sequential(*layers).eval()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1.0)
    chain = Chain.of(Recorded.of(net, Batch.of(torch.ones(1, 1, 19, 23))))

    for rows, columns in ((Span(0, 3), Span(4, 8)), (Span(7, 10), Span(9, 12))):
        x = torch.ones(1, 1, 19, 23, requires_grad=True)
        net(x)[..., rows.slice, columns.slice].sum().backward()
        assert x.grad is not None
        reached = x.grad[0, 0].nonzero()
        expected = (reached.min(0).values.tolist(), (reached.max(0).values + 1).tolist())
        found = chain.windows(2, (rows, columns))[0]
        assert ([s.start for s in found], [s.stop for s in found]) == expected


@pytest.mark.parametrize(
    ("is_streamed", "expected"), [(False, 64 + 50 + 256), (True, 36 + 50 + 256)]
)
def test_memory_and_arithmetic_of_two_convolutions(is_streamed: bool, expected: int) -> None:
    """By hand: quarters of 4x4 read 5x5 between the layers, and 6x6 of the input."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)).eval()
    rules = PatchRules("1", 2, most_recomputed=1.0, is_input_streamed=is_streamed)

    (plan,) = find_patches(net, torch.ones(2, 1, 8, 8), rules).plans

    assert plan.patches_ram_bytes == expected
    assert (plan.whole_ram_bytes, plan.rest_ram_bytes) == (128 + 256, 0)
    assert (plan.chain_macs, plan.network_macs) == (64 * 18 + 64 * 72, 64 * 18 + 64 * 72)
    assert plan.recomputed_macs == (4 * 25 - 64) * 18
    assert plan.recomputed_share == plan.recomputed_macs / plan.network_macs


def test_activations_in_place_take_no_memory() -> None:
    """Of what a patch holds, and of the output that it is written to."""
    bare = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)).eval()
    full = nn.Sequential(bare[0], nn.BatchNorm2d(2), nn.ReLU(), bare[1], nn.ReLU6(True)).eval()
    x = torch.ones(1, 1, 8, 8)

    plans = [
        find_patches(net, x, PatchRules(cut, 2, most_recomputed=1.0)).plans[0]
        for net, cut in ((bare, "1"), (full, "4"))
    ]

    assert plans[0].patches_ram_bytes == plans[1].patches_ram_bytes


def test_memory_without_patches_is_the_peak_ram_of_a_search() -> None:
    """Found in another way: from layers and their input formats."""
    net = demo.make_net()
    network = Network.of(net, list(demo.calibration())[:1])
    assert network.lifetimes is not None

    for bits in (8, 4):
        found = find_patches(net, torch.randn(2, 1, 8, 8), PatchRules(most_patches=2, bits=bits))

        precisions = dict.fromkeys((x.name for x in network.layers), Precision.parse(f"w8a{bits}"))
        assert found.whole_ram_bytes == peak_ram_bytes(network.lifetimes, precisions)[0]


def test_the_best_plan_is_the_best_of_all() -> None:
    """Of those that compute no more than the share again; ties go to less arithmetic."""
    net, x = depthwise().eval(), torch.randn(2, 3, 32, 32)
    everything = find_patches(net, x, PatchRules(most_recomputed=100.0)).plans
    within = [plan for plan in everything if plan.recomputed_share <= 0.1]

    found = find_patches(net, x, PatchRules(most_recomputed=0.1))

    best = min(within, key=lambda x: (x.ram_bytes, x.recomputed_macs))
    assert found.best is not None
    assert (found.best.ram_bytes, found.best.recomputed_macs) == (
        best.ram_bytes, best.recomputed_macs,
    )  # fmt: skip
    assert found.best.ram_bytes < found.whole_ram_bytes
    assert found.num_left_out == len(everything) - len(within) > 0
    assert all(
        a.ram_bytes <= b.ram_bytes for a, b in zip(found.plans, found.plans[1:], strict=False)
    )
    for plan in found.frontier:
        others = (o for o in found.plans if o.ram_bytes < plan.ram_bytes)
        assert all(other.recomputed_macs > plan.recomputed_macs for other in others)


def test_where_patches_do_not_pay_none_is_best() -> None:
    """The peak lies behind the convolutions."""
    net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(64, 999)).eval()

    found = find_patches(net, torch.randn(1, 1, 8, 8), ALL)

    assert found.best is None
    assert found.plans


def test_the_model_and_the_input_stay_as_they_are() -> None:
    """Also where the network writes into its input."""

    class Greedy(Residual):
        """Begins by changing what it is given."""

        def forward(self, x: Tensor) -> Tensor:
            """Logits."""
            return super().forward(x.sub_(0.5))

    net, x = trained(Greedy()), image(3, 8, 8)
    state, given = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()

    plan = find_patches(net, x, ALL).plans[0]
    off = largest_difference(net, x, plan)

    assert off < 1e-12
    assert torch.equal(x, given)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_plan_is_good_for_other_examples_and_batches() -> None:
    """Of the same size; of another size, or for another network, it is refused."""
    net = trained(Residual())
    plan = find_patches(net, image(3, 9, 11), ALL).plans[0]

    assert run_in_patches(net, image(3, 9, 11)[:1] * 3, plan).shape == (1, 3)
    with pytest.raises(ModelError, match="other operations before"):
        run_in_patches(net, image(3, 9, 14), plan)
    with pytest.raises(ModelError, match="other operations before"):
        outlier_share(net, [image(3, 9, 14)], plan, 3.0)
    with pytest.raises(ModelError, match="other operations before"):
        run_in_patches(trained(nn.Sequential(nn.Conv2d(3, 2, 3))), image(3, 9, 11), plan)


def test_what_was_put_off_is_never_read() -> None:
    """A network with a module of the cut's name, behind which it needs more than its output."""

    class Skipping(nn.Sequential):
        """Adds the output of its first layer to that of the last."""

        def forward(self, x: Tensor) -> Tensor:
            """An image."""
            first = self[0](x)
            return first + self[2](self[1](first))  # type: ignore[no-any-return]

    parts, x = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)], torch.randn(1, 2, 8, 8)
    rules = PatchRules("1", 2, most_recomputed=9.0)
    plan = find_patches(nn.Sequential(*parts).eval(), x, rules).plans[0]

    with pytest.raises(ModelError, match="other operations before 1"):
        run_in_patches(Skipping(*parts).eval(), x, plan)


@pytest.fixture(scope="module")
def quantized() -> tuple[nn.Module, nn.Module]:
    """A network, and the same in simulation with inputs of 3 bits."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, 2, 1), nn.ReLU(True), nn.Conv2d(4, 2, 1),
    ).eval()  # fmt: skip
    x = [torch.randn(8, 3, 16, 16)]
    task = mpq.Task(net, x, x, candidates=["w8a3"], metric="squared-error")
    found = mpq.search(task, {"weight_bytes": "1MiB"}, sensitivity="weight-error")
    return net, mpq.quantize(net, found.assignment)


def test_a_quantized_network_runs_by_the_plan_of_the_original(
    quantized: tuple[nn.Module, nn.Module],
) -> None:
    """Inputs are rounded window by window to the same codes."""
    net, few = quantized
    x = torch.randn(2, 3, 16, 16)

    plans = find_patches(net, x, PatchRules("4", most_patches=3, most_recomputed=9.0)).plans
    own = find_patches(few, x, PatchRules(most_patches=2, most_recomputed=9.0)).plans

    assert all(largest_difference(few, x, plan) < 1e-6 for plan in (*plans, *own))


def test_patches_with_outliers_run_in_another_network(
    quantized: tuple[nn.Module, nn.Module],
) -> None:
    """Those of each example that read a number far from the mean; the others as before."""
    net, few = quantized
    x = torch.randn(2, 3, 16, 16).clamp(-2, 2)
    x[1, 0, 15, 15] = 50.0  # in the last patch of the second example alone
    (plan,) = find_patches(net, x, PatchRules("4", 2, most_recomputed=9.0)).plans
    outliers = OutlierPatches.fitted(net, [torch.randn(64, 3, 16, 16)], 4.0)

    mixed = run_in_patches(few, x, plan, outliers)
    by_few = run_in_patches(few, x, plan)

    assert outliers.mean == pytest.approx(0.0, abs=0.02)
    assert outliers.deviation == pytest.approx(1.0, abs=0.02)
    classes = patch_classes(net, x, plan, outliers)
    assert classes.tolist() == [[[False] * 2] * 2, [[False, False], [False, True]]]
    assert torch.equal(mixed[0], by_few[0])
    # Of 8x8 outputs behind the cut each patch has 4x4, and what follows reads one position.
    assert torch.equal(mixed[1, :, :4], by_few[1, :, :4])
    assert torch.equal(mixed[1, :, :, :4], by_few[1, :, :, :4])
    assert not torch.equal(mixed[1, :, 4:, 4:], by_few[1, :, 4:, 4:])


def test_classes_are_those_of_the_data_that_a_network_writes_into() -> None:
    """A clamp in place as the first operation: the outlier is one of the data, and stays in it."""

    class Clamping(nn.Sequential):
        """Begins by cutting its input off."""

        def forward(self, x: Tensor) -> Tensor:
            """An image."""
            return self[1](self[0](x.clamp_(0, 6)))  # type: ignore[no-any-return]

    net = trained(Clamping(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()))
    x = image(3, 8, 8).clamp(-2, 2)
    x[1, 0, 7, 0] = -50.0  # in the third patch of the second example alone
    given = x.clone()
    (plan,) = find_patches(net, x, PatchRules("0", 2, most_recomputed=9.0)).plans

    classes = patch_classes(net, x, plan, OutlierPatches(net, 0.0, 1.0, 4.0))
    share = outlier_share(net, [x], plan, 4.0)

    assert torch.equal(x, given)
    assert classes.tolist() == [[[False] * 2] * 2, [[False, False], [True, False]]]
    assert share == 1 / 8


def test_classes_of_networks_that_are_refused() -> None:
    """In the words of ``find_patches``."""
    net, x = trained(Residual()), image(3, 9, 11)
    plan = find_patches(net, x, PatchRules("stem", 2, most_recomputed=9.0)).plans[0]
    outliers = OutlierPatches(net, 0.0, 1.0)

    with pytest.raises(ModelError, match="does not run on inputs of 2x5x9x11: "):
        patch_classes(net, image(5, 9, 11), plan, outliers)
    with pytest.raises(ModelError, match="training mode"):
        patch_classes(Residual(), x, plan, outliers)
    with pytest.raises(UnknownNameError, match="no operation 'stem'"):
        patch_classes(trained(depthwise()), x, plan, outliers)


def test_windows_are_computed_once_for_a_patch(
    quantized: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each of the two networks, though the class is read from them as well."""
    net, few = quantized
    x, asked, plain = torch.randn(2, 3, 16, 16), [], Chain.windows
    (plan,) = find_patches(net, x, PatchRules("4", 2, most_recomputed=9.0)).plans

    def counted(chain: Chain, cut: int, patch: tuple[Span, Span]) -> dict[int, tuple[Span, Span]]:
        asked.append(patch)
        return plain(chain, cut, patch)

    monkeypatch.setattr(Chain, "windows", counted)
    run_in_patches(few, x, plan, OutlierPatches(net, 0.0, 1.0))

    assert len(asked) == 2 * 4


@pytest.mark.parametrize(("deviation", "count"), [(0.0, 3.0), (1.0, 0.0), (float("nan"), 3.0)])
def test_outliers_that_make_no_sense(deviation: float, count: float) -> None:
    """Inputs that are all alike have none."""
    with pytest.raises(InputError, match="outliers need inputs that differ"):
        OutlierPatches(nn.Identity(), 0.0, deviation, count)


@pytest.mark.parametrize(
    ("net", "rules", "message"),
    [
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), ALL, "patch by patch: 0 is a transposed"),
        (nn.Sequential(nn.Flatten(), nn.Linear(363, 2)), ALL, "1 reads or makes something else"),
        (nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 4, 3)), ALL, "patch by patch: "),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), ALL, "copy|slice|empty|needs"),
        (nn.Conv2d(5, 4, 3), ALL, "does not run on inputs of 2x3x11x11: "),
    ],
)
def test_networks_that_are_refused(net: nn.Module, rules: PatchRules, message: str) -> None:
    """With the name of the layer where patches end."""
    with pytest.raises(ModelError, match=message):
        find_patches(net.double().eval(), image(3, 11, 11), rules)


def test_cuts_that_are_refused() -> None:
    """Names that are none, within a residual block, and behind the end of what can be patched."""
    net, x = trained(Residual()), image(3, 9, 11)

    with pytest.raises(UnknownNameError, match="no operation 'thrid'; did you mean 'third'"):
        find_patches(net, x, PatchRules("thrid"))
    with pytest.raises(ModelError, match="behind first more than its output is needed; cut at one"):
        find_patches(net, x, PatchRules("first"))
    with pytest.raises(ModelError, match="as far as head: mean in the network reads or makes"):
        find_patches(net, x, PatchRules("head"))
    with pytest.raises(InputError, match="no plane that can be cut has 12 rows"):
        find_patches(net, x, PatchRules(num_patches=12))
    with pytest.raises(ModelError, match="training mode"):
        find_patches(Residual(), x)


@pytest.mark.parametrize(
    "wrong",
    [{"num_patches": 1}, {"most_patches": 0}, {"most_recomputed": float("nan")}, {"bits": 0}],
)
def test_rules_that_make_no_sense(wrong: dict[str, float]) -> None:
    """Each with the number that came."""
    with pytest.raises(InputError, match=f"got {next(iter(wrong.values()))}"):
        PatchRules(**wrong)  # type: ignore[arg-type]


FILE = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()
"""


def call(*arguments: str) -> Result:
    """One command."""
    return CliRunner().invoke(app, ["patches", *arguments])


def test_the_command_prints_plans(tmp_path: Path) -> None:
    """For people and as JSON: the same ones as in Python."""
    file = tmp_path / "net.py"
    file.write_text(FILE, encoding="utf-8")
    asked = ("--model", f"{file}:make", "--shape", "3x32x32", "--stream-input")

    shown, told = call(*asked), call(*asked, "--json", "--max-recomputed", "0.5", "--patches", "2")

    assert shown.exit_code == told.exit_code == 0
    assert " patches up to 3: " in shown.stdout
    assert "patches end where 4 needs" in shown.stdout
    answer = json.loads(told.stdout)
    assert answer["largest_difference"] < 1e-6
    assert answer["best"]["num_patches"] == 2
    assert answer["best"]["ram_bytes"] < answer["whole_ram_bytes"]


def test_the_command_on_the_demo_and_without_a_shape() -> None:
    """The demo's images are so small that its peak lies behind every cut that pays."""
    shown, refused = call(), call("--model", "mpq.demo:make_denoiser")

    assert "no plan holds less than the network without patches" in shown.stdout
    assert refused.exit_code == 2
    assert "--model needs either --shape" in refused.stderr


def test_the_command_counts_patches_with_outliers() -> None:
    """Of the user's images; of noise there is nothing to count."""
    asked = ("--data", "mpq.demo:calibration", "--cut", "relu", "--patches", "2")

    told = call(*asked, "--outliers", "1.8", "--json")
    refused = call("--outliers", "1.8")

    images = torch.cat([batch[0] for batch in demo.calibration()])
    is_far = (images - images.mean()).abs() > 1.8 * images.std(correction=0)
    # One 3x3 convolution: a quarter of 4x4 reads 5x5 pixels of the image.
    windows = [
        is_far[..., a, b] for a in (slice(0, 5), slice(3, 8)) for b in (slice(0, 5), slice(3, 8))
    ]
    share = torch.stack([window.flatten(1).any(1) for window in windows]).double().mean()
    assert 0 < float(share) < 1
    assert json.loads(told.stdout)["outlier_share"] == pytest.approx(float(share))
    assert refused.exit_code == 2
    assert "--outliers needs --data" in refused.stderr


def test_what_was_found_can_be_read() -> None:
    """A plan says in what it counts."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1)).eval()

    found = find_patches(net, torch.ones(1, 1, 16, 16), ALL)

    assert isinstance(found, FoundPatches)
    assert found.plans[0].to_dict()["patches_ram_bytes"] == found.plans[0].patches_ram_bytes
