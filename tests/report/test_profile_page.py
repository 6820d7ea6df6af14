"""The page of a measured network: made again from its file, safe, and right in its numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mpq.cli.__main__ import app
from mpq.errors import FileFormatError, InputError
from mpq.report.page import render
from mpq.workflows.page.profiled import facts_of_profile, page_of_profile, write_profile
from mpq.workflows.page.report import report
from tests.report.made_up import HOSTILE, blocks
from tests.report.made_up_profile import made_up_profile
from tests.report.reading import read, tables


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their scripts are tested in a browser, and are long."""
    monkeypatch.setattr(render, "vega_script", lambda: "vega")


def test_the_page_is_made_again_from_the_file_alone(tmp_path: Path) -> None:
    """Byte by byte, by the command, beside the file and called as it."""
    files = write_profile(made_up_profile(blocks(6)), tmp_path / "this.json")
    first = (tmp_path / "this.html").read_bytes()

    ran = CliRunner().invoke(app, ["report", str(tmp_path / "this.json")])

    assert ran.exit_code == 0, ran.output
    assert [file.name for file in files] == ["this.json", "this.html"]
    assert (tmp_path / "this.html").read_bytes() == first


def test_what_repeats_it_is_named() -> None:
    """A command as a shell takes it; of a profile from Python it is not known."""
    profile = made_up_profile(blocks(4))
    words = ["mpq", "profile", "--output", "my this.json"]

    by_command = replace(profile, record={**profile.record, "command": words})

    assert b"mpq profile --output &#39;my this.json&#39;" in page_of_profile(by_command)
    assert b"The command is not known" in page_of_profile(profile)


def test_what_was_measured_is_named() -> None:
    """Network and examples by the command's names; of a profile from Python it is not known."""
    profile = made_up_profile(blocks(4))
    loaded = {"network": "net.py:make", "weights": "w.pt", "calibration": "net.py:batches"}

    by_command = facts_of_profile(replace(profile, record={**profile.record, "sources": loaded}))

    assert by_command.loaded == (("network", "net.py:make; w.pt"), ("examples", "net.py:batches"))
    assert dict(facts_of_profile(profile).loaded) == {"network": "", "examples": ""}
    page = render.profile_page(by_command)
    assert b">network</th><td>net.py:make; w.pt<" in page


def test_a_drawn_network_of_one_precision_is_no_second_uniform_one() -> None:
    """It has a number as all that are drawn; the uniform network is the one that was asked for."""
    profile = made_up_profile(blocks(4))
    *mixed, floats, packed = profile.record["networks"]
    drawn = {**packed, "median_s": 7.0}
    record = {**profile.record, "networks": [*mixed, drawn, floats, packed]}

    facts = facts_of_profile(replace(profile, record=record))

    labels = [network.label for network in facts.networks]
    number = len(mixed) + 1
    assert labels[-3:] == [
        f"mixed {number}, all at w8g32a8d", "uniform fp32", "uniform w8g32a8d"
    ]  # fmt: skip
    assert facts.uniform[2].measured == facts.networks[-1]


def test_hostile_names_are_text(tmp_path: Path) -> None:
    """No element and no attribute is theirs."""
    plain, hostile = (
        read(render.profile_page(facts_of_profile(made_up_profile(names))))
        for names in (tuple(f"layer{k}" for k in range(8)), HOSTILE)
    )

    assert hostile.tags.count("script") == plain.tags.count("script") == 3
    assert set(hostile.tags) <= set(plain.tags) | {"wbr"}
    assert not [name for name, _ in hostile.attributes if name.startswith("on")]


def test_uniform_networks_are_those_of_the_table() -> None:
    """Predicted as a search prices them, with squares of widths, beside what was run."""
    profile = made_up_profile(blocks(6))

    floats, wrong, packed = facts_of_profile(profile).uniform

    widths = profile.half_width.values[:, 0]
    assert floats.total == pytest.approx(profile.latency.total(np.zeros(6, dtype=np.intp)))
    assert floats.half_width == pytest.approx(np.linalg.norm(widths))
    assert floats.total is not None
    assert floats.measured is not None
    assert floats.measured.measured == pytest.approx(floats.total * 1.02)
    assert (wrong.num_layers, wrong.total, wrong.measured) == (5, None, None)
    assert packed.measured is not None
    assert packed.measured.label == "uniform w8g32a8d"


def test_a_networks_time_is_the_sum_of_what_the_page_shows() -> None:
    """Its layers, what is between them, and what is besides; also where two take less together."""
    profile = made_up_profile(blocks(6))
    pairs = tuple(replace(pair, values=pair.values - 1e-4) for pair in profile.latency.pairs)
    facts = facts_of_profile(replace(profile, latency=replace(profile.latency, pairs=pairs)))

    floats, wrong, _ = facts.uniform

    assert floats.between is not None
    assert floats.between < 0
    assert floats.total == pytest.approx(floats.layers + floats.between + facts.besides)
    assert wrong.between is None
    caption = "All layers at one precision, one run of a batch of 2"
    _, *rows = tables(render.profile_page(facts))[caption]
    assert [row[3][0] for row in rows] == ["-", "–", "-"]


def test_what_has_no_mark_is_told() -> None:
    """A layer that was measured to take nothing, on a logarithmic axis."""
    profile = made_up_profile(blocks(6))
    values = profile.latency.values.copy()
    values[2, 0] = 0.0

    page = page_of_profile(replace(profile, latency=replace(profile.latency, values=values)))

    assert b"the table has the numbers, also those of 0, which have no mark: 1." in page
    assert b"have no mark" not in page_of_profile(profile)


def test_conversions_are_beyond_the_cheapest() -> None:
    """Of the same two layers: half of what was measured, as the factor says."""
    facts = facts_of_profile(made_up_profile(blocks(4)))

    first = facts.conversions[:9]
    assert min(x.predicted for x in first) == 0
    assert len(facts.conversions) == 27
    for x in first:
        assert x.measured == pytest.approx(2 * x.predicted, abs=1e-15)


def test_layers_alone_are_without_the_idle_run() -> None:
    """As they were measured, and a tenth more in a network."""
    facts = facts_of_profile(made_up_profile(blocks(4)))

    cell, wrong = facts.layers[0].cells[0], facts.layers[1].cells[1]

    assert cell is not None
    assert cell.alone == pytest.approx(cell.seconds / 1.1)
    assert wrong is None


def test_what_a_colleague_would_say() -> None:
    """What is fastest, how far off predictions are, and what is not covered."""
    profile = made_up_profile(blocks(4))
    facts = facts_of_profile(profile)

    assert facts.sentences[0].startswith("Of uniform networks w8g32a8d is fastest: predicted ")
    assert facts.sentences[0].endswith(" × fp32.")
    assert facts.sentences[2] == (
        "The sum corrected by whole networks predicts networks that it has not seen to 3.0% in "
        "the median and 5.0% at most (2 networks)."
    )
    assert facts.uncovered[0] == (
        "model.layers.0.attention.out at w7a8 is left out: the runtime computes something else "
        "there, off by 3 standard deviations of its output."
    )
    few = {key: profile.record[key] for key in ("idle", "layers", "computed_wrongly")}
    bare = facts_of_profile(
        replace(profile, record=few, latency=replace(profile.latency, pairs=()))
    )
    assert "is not known" in bare.sentences[-1]
    assert "No whole network was run: what is besides the layers is not known." in bare.uncovered
    assert b"No whole network was run" in render.profile_page(bare)


def test_a_file_that_is_no_profile_is_told(root: Path, tmp_path: Path) -> None:
    """A device of another model, and no JSON."""
    device = root / "mpq/hardware_profiles/devices/cortex-m7.json"
    with pytest.raises(InputError, match="a device of the model Roofline: a page is made of what"):
        report([device], tmp_path / "page.html")

    (tmp_path / "x.json").write_text(json.dumps({"model": "network"}))
    with pytest.raises(FileFormatError, match=r"x\.json: not a valid profile"):
        report([tmp_path / "x.json"])
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match="holds no result that a page is made of"):
        report([tmp_path / "x.txt"])
