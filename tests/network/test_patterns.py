"""Which layers a user means: globs over names, predicates over modules."""

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from mpq.errors import InputError, UnknownNameError
from mpq.network.network import Network
from mpq.network.patterns import check_pattern, matching


def modules(names: Iterable[str]) -> dict[str, nn.Module]:
    """Layers of which only the names matter."""
    return {name: nn.Identity() for name in names}


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("fc", ("fc",)),
        ("block.*.conv1", ("block.0.conv1", "block.1.conv1")),
        ("block.[1]*", ("block.1.conv1", "block.1.conv2")),
        ("*conv?", ("block.0.conv1", "block.1.conv1", "block.1.conv2")),
        ("*", ("block.0.conv1", "block.1.conv1", "block.1.conv2", "fc")),
    ],
)
def test_globs_match_whole_names_in_their_order(glob: str, expected: tuple[str, ...]) -> None:
    """Stars, question marks and brackets work as in a shell; dots are ordinary characters."""
    names = ["block.0.conv1", "block.1.conv1", "block.1.conv2", "fc"]

    assert matching(modules(names), glob, "--fix") == expected


@pytest.mark.parametrize("glob", ["FC", "f", "conv1", ""])
def test_a_glob_that_matches_nothing_is_refused(glob: str) -> None:
    """The message names the option and the layers that there are; case matters."""
    with pytest.raises(
        UnknownNameError, match=r"no layer for fix \(--fix\) .*there are: block\.conv1, fc"
    ):
        matching(modules(["block.conv1", "fc"]), glob, "--fix")


def test_a_misspelled_layer_gets_a_hint() -> None:
    """The nearest name is offered."""
    with pytest.raises(UnknownNameError, match=r"did you mean 'layer1\.conv'\?"):
        matching(modules(["layer1.conv", "fc"]), "layer1.cnov", "--tie")


def test_a_predicate_sees_name_and_module() -> None:
    """What a name does not tell, such as a layer's width, the module does."""
    layers: dict[str, nn.Module] = {
        "wide": nn.Linear(2, 64), "narrow": nn.Linear(2, 4), "also": nn.Linear(4, 64)
    }  # fmt: skip

    found = matching(layers, lambda name, m: bool(m.out_features == 64) and name != "also", "--fix")

    assert found == ("wide",)


def test_a_predicate_that_matches_nothing_is_refused() -> None:
    """As a glob is; it is called by its name, and the layers that there are are named."""

    def is_huge(name: str, module: nn.Module) -> bool:
        return False

    with pytest.raises(
        UnknownNameError, match=r"no layer for tie \(--tie\) by the predicate 'is_huge' .*are: a, b"
    ):
        matching(modules("ab"), is_huge, "--tie")


@pytest.mark.parametrize("pattern", [3, None, ["head"]])
def test_a_pattern_is_a_glob_or_a_predicate(pattern: object) -> None:
    """Anything else is refused with both forms."""
    with pytest.raises(InputError, match=r"exclude: a layer is named by a glob such"):
        check_pattern(pattern, "exclude")


def test_layers_are_left_out_by_a_predicate() -> None:
    """Of a network, before its layers are counted."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)).eval()

    network = Network.of(
        model, [torch.randn(2, 4)], exclude=[lambda _, module: bool(module.out_features == 3)]
    )

    assert [layer.name for layer in network.layers] == ["0"]


@pytest.mark.parametrize("name", ["layers[0]", "a*", "a?", "[!x]", "[", "layers[0].fc", "[ab]"])
def test_a_name_matches_itself_and_nothing_else(name: str) -> None:
    """Whatever characters a layer's name has; others that the glob would match stay out."""
    others = ["layers0", "ab", "a", "b", "layers0.fc", "y"]

    assert matching(modules([*others, name]), name, "--exclude") == (name,)


def test_brackets_stand_for_themselves_where_no_set_matches() -> None:
    """``layers[0].*`` is meant literally where there are no layers ``layers0.*``."""
    names = ["layers[0].a", "layers[0].b", "layers[1].a"]

    assert matching(modules(names), "layers[0].*", "--fix") == tuple(names[:2])
    both = modules([*names, "layers0.a"])
    assert matching(both, "layers[0].*", "--fix") == ("layers0.a",)


def takes_one(name: str) -> bool:
    """Whether there is a name."""
    return bool(name)


@pytest.mark.parametrize("predicate", [takes_one, lambda: True])
def test_a_predicate_takes_name_and_module(predicate: object) -> None:
    """Said with the rule and the predicate, before a network is looked at."""
    with pytest.raises(InputError, match=r"fix: a predicate is called .*; '(takes_one|<lambda>)'"):
        check_pattern(predicate, "fix")


def test_a_class_may_be_a_predicate() -> None:
    """Whatever can be called with both; of what is written in C, as far as it is known."""
    check_pattern(isinstance, "fix")
    check_pattern(lambda *both: bool(both), "fix")
