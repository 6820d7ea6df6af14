"""What every verb is asked about: checked once, when it is made."""

from typing import Any

import pytest
import torch
from torch import nn

import mpq
from mpq.errors import InputError, PrecisionError, UnknownNameError
from mpq.quantization.precision import Precision
from mpq.workflows.setup import Prepared
from mpq.workflows.task import DEFAULT_CANDIDATES
from tests.tasks import task_of

W4, W8 = Precision.parse("w4a8"), Precision.parse("w8a8")


def network() -> nn.Module:
    """Three layers; the middle one is wide."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 64), nn.Linear(64, 3)).eval()


def examples() -> list[torch.Tensor]:
    """Some rows."""
    return [torch.randn(16, 4, generator=torch.Generator().manual_seed(0))]


def is_wide(name: str, module: nn.Module) -> bool:
    """Whether a layer has many outputs."""
    return isinstance(module, nn.Linear) and module.out_features == 64


def prepared(**rules: Any) -> Prepared:
    """Of the network with these rules."""
    task = mpq.Task(network(), examples(), candidates=["w4a8", "w8a8"], rules=mpq.Rules(**rules))
    return Prepared.of(task)


@pytest.mark.parametrize("fix", [{is_wide: "w8a8"}, [(is_wide, W8)], {"1": W8}])
def test_precisions_are_fixed_by_globs_and_predicates(fix: Any) -> None:
    """In a mapping or in pairs, spelled or not: all name the same layer."""
    assert prepared(fix=fix).fixed == {"1": W8}


def test_both_ends_are_given_a_precision() -> None:
    """``fix`` goes before; a precision that is none is refused."""
    assert prepared(ends="w8a8").fixed == {"0": W8, "2": W8}
    assert prepared(ends=W8, fix={"2": "w4a8"}).fixed == {"0": W8, "2": W4}
    with pytest.raises(PrecisionError, match="'8' is not a precision"):
        prepared(ends="8")


def test_layers_of_a_block_are_tied() -> None:
    """Of a list of blocks; the head is in none."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2)]
    net = nn.Sequential(nn.Sequential(*blocks), nn.Linear(4, 3)).eval()
    task = mpq.Task(net, examples(), rules=mpq.Rules(tie_blocks=True))

    assert Prepared.of(task).ties == (("0.0.0", "0.0.2"), ("0.1.0", "0.1.2"))


def test_all_layers_but_both_ends_are_tied() -> None:
    """Of one in between there is nothing to tie."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))).eval()

    tied = Prepared.of(mpq.Task(net, examples(), rules=mpq.Rules(tie_inner=True)))

    assert tied.ties == (("1", "2", "3"),)
    assert prepared(tie_inner=True).ties == ()


def test_candidates_are_allowed_by_predicates() -> None:
    """The other layers keep the common ones."""
    assert prepared(allow=[(is_wide, ["w4a8", "w4a8"])]).allowed == {"1": (W4,)}


def test_layers_are_tied_and_chosen_by_predicates() -> None:
    """As by globs; a predicate that is true of nothing is an error."""
    narrow = [lambda name, module: not is_wide(name, module)]

    assert prepared(tie=narrow).ties == (("0", "2"),)
    assert [layer.name for layer in prepared(include=narrow).network.layers] == ["0", "2"]
    assert [layer.name for layer in prepared(exclude=[is_wide]).network.layers] == ["0", "2"]
    with pytest.raises(
        UnknownNameError, match=r"no layer for tie \(--tie\) by the predicate '<lambda>'"
    ):
        prepared(tie=[lambda *_: False])


def test_a_later_pattern_overrides_an_earlier_one() -> None:
    """Also where a glob follows a predicate."""
    assert prepared(fix=[(is_wide, "w4a8"), ("*", "w8a8")]).fixed == dict.fromkeys("012", W8)


def test_a_network_is_searched_with_predicates() -> None:
    """The layer that a predicate names has what was fixed, and the limit holds in its own unit."""
    task = mpq.Task(
        network(), examples(), candidates=["w4a8", "w8a8"], rules=mpq.Rules(fix={is_wide: "w8a8"})
    )

    found = mpq.search(task, {"weight_bytes": 1500}, sensitivity="weight-error")

    assert found.assignment.precisions["1"] == W8
    assert found.comparison("result").costs["weight_bytes"] <= 1500


def test_one_shot_iterators_are_kept() -> None:
    """A task is asked again and again; the answers are those of a list."""
    torch.manual_seed(0)
    data = [torch.randn(4, 6) for _ in range(4)]
    model = nn.Linear(6, 3).eval()
    options: dict[str, Any] = {"candidates": ["w2", "w4"], "rounding": "nearest"}
    kept = mpq.Task(model, iter(data[:3]), (x for x in data[3:]), **options)
    plain = mpq.Task(model, data[:3], data[3:], **options)

    for _ in range(2):
        found, known = (mpq.search(task, {"effective_bits": 9}) for task in (kept, plain))
        assert found.comparison("result").measured == known.comparison("result").measured


def test_the_original_is_nothing_apart_from_itself() -> None:
    """Exactly 0, whatever folding BatchNorm rounds; and the same where nothing is quantized."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    model.get_buffer("1.running_mean").normal_()
    task = mpq.Task(model.eval(), [torch.randn(16, 1, 8, 8)], candidates=["w8a8", "fp32"])

    found = mpq.search(task, {"effective_bits": 32}, sensitivity="weight-error")

    assert found.assignment.folded
    assert found.comparison("original").measured.divergence == 0.0
    assert set(map(str, found.assignment.precisions.values())) == {"fp32"}
    assert found.measured.divergence == 0.0
    assert found.comparison("w8a8").measured.divergence > 0


def test_a_frontier_needs_no_limit() -> None:
    """Over bytes of weights, where nothing else is said; the ends are the cheapest and the best."""
    task = mpq.Task(network(), examples(), candidates=["w2a8", "w4a8", "w8a8"])

    found = mpq.frontier(task, num_points=5, sensitivity="weight-error")

    costs, losses = [p.cost for p in found.points], [p.loss for p in found.points]
    assert found.resource == "weight_bytes"
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert set(map(str, found.points[0].precisions.values())) == {"w2a8"}
    assert set(map(str, found.points[-1].precisions.values())) == {"w8a8"}


def test_a_frontier_within_limits() -> None:
    """Every point meets them; the resource is one that is named."""
    task = mpq.Task(network(), examples(), candidates=["w2a8", "w4a8", "w8a8"])
    limit = 1200.0

    found = mpq.frontier(
        task, "bit_operations", {"weight_bytes": limit}, num_points=4, sensitivity="weight-error"
    )

    prices = Prepared.of(task).pricing
    assert found.resource == "bit_operations"
    assert all(prices.amount("weight_bytes", point.precisions) <= limit for point in found.points)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"candidates": ["w17"]}, PrecisionError, "'w17' is not a precision"),
        ({"candidates": []}, InputError, "candidates is empty; name precisions such as w8a8"),
        ({"candidates": "w8a8"}, InputError, r"a list of precisions; got 'w8a8': write \['w8a8'\]"),
        ({"device": "cortex-m8"}, UnknownNameError, "did you mean 'cortex-m7'"),
        ({"metric": "mse"}, UnknownNameError, "no metric 'mse'"),
        ({"exclude": "head"}, InputError, r"exclude takes a list .* write exclude=\['head'\]"),
        ({"include": [3]}, InputError, "include: a layer is named by a glob"),
        ({"fix": {"head": "w17"}}, PrecisionError, "'w17' is not a precision"),
        ({"fix": ["head"]}, InputError, "fix maps globs or predicates to precisions"),
        ({"fix": {3: "w8a8"}}, InputError, "fix: a layer is named by a glob"),
        ({"allow": {"head": "w8a8"}}, InputError, r"allow takes a list of precisions; got 'w8a8'"),
        ({"batch_size": 0}, InputError, "batch size is at least 1"),
    ],
)
def test_what_is_misspelled_is_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """When the task is made: nothing is loaded, traced or measured before."""
    with pytest.raises(error, match=message):
        task_of(network(), examples(), options)


@pytest.mark.parametrize(
    ("verb", "call"),
    [
        ("frontier", mpq.frontier),
        ("profile", mpq.profile),
        ("compare", lambda model: mpq.compare(model, {})),
        ("Session.of", mpq.Session.of),
    ],
)
def test_a_model_is_no_task(verb: str, call: Any) -> None:
    """What to write is said."""
    with pytest.raises(InputError, match=rf"{verb} takes a Task: mpq.{verb}\(mpq.Task\(model, da"):
        call(network())


@pytest.mark.parametrize("ranges", [("max", "mse"), ("mse", "percentil")])
def test_ranges_are_chosen_by_a_rule_that_exists(ranges: tuple[Any, Any]) -> None:
    """Of weights and of activations."""
    with pytest.raises(UnknownNameError, match=r"no range method '\w+'"):
        mpq.Ranges(*ranges)


def test_candidates_where_none_are_named() -> None:
    """Those that the device runs, or all of the default ones."""
    free = mpq.Task(network(), examples())
    device = mpq.Task(network(), examples(), device="cortex-m7")

    assert tuple(map(str, free.precisions)) == DEFAULT_CANDIDATES
    assert set(device.precisions) < set(free.precisions)


def test_a_task_does_not_profile_a_phase() -> None:
    """A profile is measured at the examples as they are."""
    task = mpq.Task(network(), examples(), workload=mpq.Workload(phase="decode"))

    with pytest.raises(InputError, match="not at phase decode: leave it out"):
        mpq.profile(task)
