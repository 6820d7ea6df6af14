"""Where a compiled network differs from its simulations, its first layer that does is named."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpq.backends import shipping
from mpq.backends.c import target as module
from mpq.backends.c.program import Program
from mpq.backends.c.target import C
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped
from mpq.errors import ModelError
from mpq.network.examples import Batch
from tests.backends.c.networks import Everything, Line, assigned, examples, network


def exported(folder: Path, mix: tuple[str, ...] = ("w4a8", "w8a4", "w8a8")) -> None:
    """A network with each kernel, as the target writes and runs it."""
    model, data = network(Everything), examples(Everything)
    ship(C(), "c", assigned(model, data, mix), folder, model, [data])


def after_writing(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str], name: str = "network.c"
) -> None:
    """Changes a file of the folder before it is compiled."""
    write = C.write

    def changed(self: C, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        file = folder / name
        text = file.read_text()
        file.write_text(change(text))
        assert file.read_text() != text

    monkeypatch.setattr(C, "write", changed)


def numbers(array: str, layer: str, by: Callable[[int], int]) -> Callable[[str], str]:
    """Changes all numbers of one of a layer's arrays in ``network.c``."""

    def change(text: str) -> str:
        found = re.search(rf"/\* {layer}: .*?{array}_\d+\[\d+\] = {{([^}}]*)", text, re.DOTALL)
        assert found is not None
        changed = ",".join(str(by(int(x))) for x in re.findall(r"-?\d+", found[1]))
        return text[: found.start(1)] + changed + text[found.end(1) :]

    return change


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize(
    ("layer", "array"),
    [("stem", "multipliers"), ("depth", "bias"), ("last", "shifts"), ("head", "bias")],
)
def test_constants_that_changed_are_found_in_their_layer(
    layer: str, array: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the compiled network alone: weights are decoded alike, and only one layer is another."""
    by = {"bias": lambda x: x + 2**20, "multipliers": lambda x: x // 2, "shifts": lambda x: x + 2}
    after_writing(monkeypatch, numbers(array, layer, by[array]))

    with pytest.raises(ModelError, match=f"bit for bit.* codes differ is layer '{layer}'$"):
        exported(tmp_path / "out")

    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("same_process")
def test_a_step_without_a_layer_is_told_by_the_layer_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean that multiplies by something else."""

    def change(text: str) -> str:
        head, call, rest = text.rpartition("    mpq_mean(")
        assert call
        return head + "    ratio.multiplier = ratio.multiplier / 2;\n" + call + rest

    after_writing(monkeypatch, change)
    model, data = network(Line), examples(Line)

    with pytest.raises(ModelError, match=r"codes differ is the mean after layer 'third'$"):
        ship(C(), "c", assigned(model, data, ("w4a8",)), tmp_path / "out", model, [data])


@pytest.mark.usefixtures("same_process")
def test_other_outputs_than_expected_are_no_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the folder is what changed."""

    def change(text: str) -> str:
        head, where, rest = text.partition("expected[EXAMPLES][NETWORK_OUTPUTS] = {{")
        assert where
        return f"{head}{where}1 +{rest}"

    after_writing(monkeypatch, change, "check.c")

    with pytest.raises(ModelError, match="only the outputs that are expected are others"):
        exported(tmp_path / "out")


@pytest.mark.parametrize("layer", ["stem", "wide", "short", "head"])
def test_integers_that_are_not_the_layers_are_found_in_it(
    layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Bit for bit the integer simulation, which is another one than that in floating point."""
    if layer != "wide":  # one of them in a process of its own
        request.getfixturevalue("same_process")
    made: Any = module.integer_program

    def wrong(*given: Any) -> Program:
        program: Program = made(*given)
        works = [
            replace(x, ratios=replace(x.ratios, multipliers=x.ratios.multipliers // 2))
            if x.step.layer == layer
            else x
            for x in program.works
        ]
        return replace(program, works=tuple(works))

    monkeypatch.setattr(module, "integer_program", wrong)

    with pytest.raises(ModelError, match=rf"decoded alike\. .* differs is layer '{layer}', by"):
        exported(tmp_path / "out")


@pytest.mark.usefixtures("same_process")
def test_nothing_is_traced_where_outputs_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties fall to either side, and are accepted."""

    def refused(*_: object) -> None:
        pytest.fail("the network was run again")

    monkeypatch.setattr(shipping, "trace_fresh", refused)

    exported(tmp_path / "out")

    assert (tmp_path / "out" / "export.json").exists()


@pytest.mark.parametrize("mix", [("w8a8",), ("w4a4", "w8a3"), ("w4ta8s", "w8ta4s")])
def test_a_sound_network_has_no_first_layer(mix: tuple[str, ...], tmp_path: Path) -> None:
    """Each step makes the simulation's codes of what it reads, but for ties: one code of few."""
    model, data = network(Everything), examples(Everything)
    found = assigned(model, data, mix)
    kept: list[Any] = []
    reference = C.reference

    def keeping(self: C, simulated: Any, shipped: Shipped) -> Any:
        kept.append(reference(self, simulated, shipped))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(C, "reference", keeping)
        ship(C(), "c", found, tmp_path / "out", model, [data])
    batch = Batch((data,), {})

    traced = C().load(tmp_path / "out").traced(batch)  # type: ignore[attr-defined]

    assert {len(x) for x in traced.values()} == {len(data)}
    assert kept[0].first_apart(batch, traced) == ""
