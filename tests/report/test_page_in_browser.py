"""The page in a real browser: it works from disk, alone, for everybody."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpq._support.files import write_files
from mpq.problem.assignment import Assignment
from mpq.problem.limits import written_limit
from mpq.report.page.facts import DeviceFacts
from mpq.report.page.made import Made
from mpq.report.page.render import page_of
from mpq.report.page.vega import vega_script
from mpq.report.save import save_result
from mpq.report.sections import frontier_files
from mpq.workflows.page.facts import facts_of
from mpq.workflows.page.report import report
from mpq.workflows.page.write import page_beside
from tests.report.browser import Opened, cut_on_paper, opened, serious, started
from tests.report.made_up import HOSTILE, blocks, curve, made_up

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = {"small": blocks(18), "500 layers": blocks(500), "hostile": HOSTILE}
SCORE = "judges:<mAP>"
COMMAND = ("mpq", "search", "--limit", "weight_bytes=20KiB", "--output", "runs/a")
MIDDLE_OF_THE_FIRST_POINT = """(() => {
  const marks = [...document.querySelectorAll("#frontier g.mark-symbol.role-mark")].pop();
  const box = () => marks.querySelector("path").getBoundingClientRect();
  window.scrollTo({ top: box().top + window.scrollY - 300, behavior: "instant" });
  return [box().x + box().width / 2, box().y + box().height / 2];
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """One for all tests here."""
    with started() as found:
        if not vega_script():
            pytest.skip("vl-convert-python is not installed, so that pages have no pictures")
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each case, made from what was saved."""
    found = {}
    for case, names in NAMES.items():
        folder = tmp_path_factory.mktemp("page")
        result = made_up(names, interact=case == "small", score=SCORE if case == "small" else "")
        frontier = curve(result)
        save_result(result, folder, frontier, ())
        write_files(folder, frontier_files(frontier, result.run_id))
        page_beside(replace(result, made=Made(COMMAND)), frontier, folder)
        found[case] = report([folder], folder / "again.html")
    return found


@pytest.fixture(scope="module", params=list(NAMES))
def page(
    request: pytest.FixtureRequest, browser: "Browser", pages: dict[str, Path]
) -> Iterator[Opened]:
    """Each page, opened."""
    with opened(browser, pages[request.param]) as found:
        yield found


@pytest.fixture
def small(browser: "Browser", pages: dict[str, Path]) -> Iterator[Opened]:
    """The small page, as nobody has touched it."""
    with opened(browser, pages["small"]) as found:
        yield found


def test_nothing_is_said_and_nothing_is_fetched(page: Opened) -> None:
    """No error in the console, no dialog, no request but for the file itself."""
    page.page.wait_for_selector("#checks svg", state="attached")
    others = [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))]

    assert page.said == []
    assert others == []
    assert len([url for url in page.asked if url.startswith("file:")]) == 1


def test_no_name_is_run(page: Opened) -> None:
    """Names are text wherever they stand."""
    assert page.page.evaluate("window.hacked === undefined")


def test_every_picture_is_drawn(page: Opened) -> None:
    """Each with marks that have a size."""
    for picture in ("networks", "frontier", "bits", "checks"):
        page.page.wait_for_selector(f"#{picture} svg", state="attached")
        assert page.page.locator(f"#{picture} svg path").count() > 5, picture


def test_the_page_is_no_wider_than_the_screen(browser: "Browser", pages: dict[str, Path]) -> None:
    """Of a telephone: tables are scrolled, the page is not."""
    for file in pages.values():
        size = {"width": 390, "height": 800}
        with opened(browser, file, viewport=size) as found:
            assert found.number("document.documentElement.scrollWidth") <= 390


def test_sources_of_a_devices_numbers_begin_on_the_screen(
    browser: "Browser", tmp_path: Path
) -> None:
    """Of a telephone: long names of numbers are broken, and not what is said of them pushed out."""
    made = made_up(NAMES["small"])
    numbers = (("memory_bandwidth_bytes_per_s", 1.5e9, "derived: internal flash, 256-bit words"),)
    facts = replace(facts_of(made, curve(made)), device=DeviceFacts("m7", "", "", "", numbers))
    file = tmp_path / "page.html"
    file.write_bytes(page_of(facts))

    with opened(browser, file, viewport={"width": 390, "height": 800}) as found:
        source = "document.querySelector('#device-numbers td:last-child').getBoundingClientRect()"
        assert found.number(f"{source}.left") < 270
        assert found.number(f"{source}.width") > 150


@pytest.mark.parametrize("width", [1400, 390])
def test_words_of_pictures_are_whole(
    browser: "Browser", pages: dict[str, Path], width: int
) -> None:
    """No legend and no label lies behind the edge; bars of many layers alone are scrolled."""
    cut = """() => ["networks", "frontier", "checks"].flatMap((id) => {
      const canvas = document.getElementById(id), edge = canvas.getBoundingClientRect();
      return [...canvas.querySelectorAll("svg text")].filter((each) => {
        const box = each.getBoundingClientRect();
        return box.width > 0 && (box.right > edge.right + 2 || box.left < edge.left - 2);
      }).map((each) => id + ": " + each.textContent);
    })"""
    with opened(browser, pages["small"], viewport={"width": width, "height": 800}) as found:
        found.page.wait_for_selector("#checks svg", state="attached")

        assert found.page.evaluate(cut) == []


def test_a_tooltip_says_what_the_table_says(small: Opened) -> None:
    """Of every network: within, beyond a budget, or against a rule for layers."""
    rows = small.page.locator(".beside.wide tbody tr")
    said = {
        row.locator("th").inner_text(): row.locator("td").last.inner_text() for row in rows.all()
    }
    marks = small.page.locator("#networks g.mark-symbol.role-mark").first.locator("path")
    told = {}
    for mark in marks.all():
        mark.hover(force=True)
        cells = small.page.locator("#vg-tooltip-element td").all_inner_texts()
        found = dict(zip(cells[::2], cells[1::2], strict=True))
        told[found["network"]] = found["budgets, rules"]

    assert {"within", "breaks a rule"} <= set(told.values())
    assert told == {name: text for name, text in said.items() if name != "original"}


LABELS = """[...document.querySelectorAll("#frontier g.mark-text.role-mark text")]
  .map(x => [x.textContent, x.getBoundingClientRect()]).filter(([, box]) => box.width > 0)
  .map(([text, box]) => [text, box.left, box.top, box.right, box.bottom])"""


def overlapping(labels: list[tuple[str, float, float, float, float]]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes meet."""
    return [
        (first[0], second[0])
        for first, second in combinations(labels, 2)
        if first[1] < second[3] and second[1] < first[3]
        and first[2] < second[4] and second[2] < first[4]
    ]  # fmt: skip


@pytest.mark.parametrize("width", [1400, 390])
def test_no_label_lies_over_another(browser: "Browser", tmp_path: Path, width: int) -> None:
    """The budget's runs through the labels of points that cost the same."""
    made = made_up(NAMES["small"])
    result = replace(made, made=Made(COMMAND))
    frontier = curve(result, 8)
    budget = result.problem.budgets[0].limit
    heap = [
        replace(point, label=f"w{number}a8", cost=budget * 0.97, loss=frontier.points[0].loss)
        for number, point in enumerate(result.beside("weight_bytes") * 2)
    ]
    facts = facts_of(result, replace(frontier, others=tuple(heap)))
    points = [
        replace(x, costs={**x.costs, "weight_bytes": budget * 0.97}) if x.kind == "uniform" else x
        for x in facts.points
    ]
    file = tmp_path / "page.html"
    file.write_bytes(page_of(replace(facts, points=tuple(points))))

    with opened(browser, file, viewport={"width": width, "height": 800}) as found:
        found.page.wait_for_function(f"{LABELS}.length > 3")
        labels = found.page.evaluate(LABELS)

    assert {"budget", "w0a8", "w9a8"} <= {text for text, *_ in labels}
    assert overlapping(labels) == []


def test_pictures_follow_the_windows_width(small: Opened) -> None:
    """As wide as there is room, from a desk to a telephone and back; nothing is moved sideways."""
    widths = """["networks", "frontier", "bits", "checks"].map(
      (id) => Math.round(document.querySelector(`#${id} svg`).getBoundingClientRect().width))"""
    small.page.wait_for_selector("#checks svg", state="attached")
    wide = small.page.evaluate(widths)

    def at(width: int, until: str) -> list[int]:
        small.page.set_viewport_size({"width": width, "height": 800})
        small.page.wait_for_function(f"(w => {until})({widths})")
        assert small.number("document.documentElement.scrollWidth") <= width
        return list(small.page.evaluate(widths))

    narrow = at(390, "w[0] <= 390 && w[1] <= 390 && w[3] <= 390")
    again = at(1400, f"JSON.stringify(w) === '{json.dumps(wide, separators=(',', ':'))}'")

    assert all(slim < broad for slim, broad in zip(narrow, wide, strict=True))
    assert again == wide
    assert small.said == []


def test_tables_are_whole_on_paper(small: Opened) -> None:
    """Nothing can be moved sideways there."""
    assert cut_on_paper(small) == []


def test_no_layer_is_closed_on_paper(browser: "Browser", pages: dict[str, Path]) -> None:
    """Nobody can open it there; nor is paper searched."""
    with opened(browser, pages["500 layers"]) as found:
        found.page.fill("#search", "layers.17.mlp")
        found.page.emulate_media(media="print")

        for table in ("layers", "heat"):
            assert found.page.locator(f"#{table} [data-layer]:visible").count() == 500
            assert found.page.locator(f"#{table} .toggle:visible").count() > 17


@pytest.mark.parametrize(
    ("case", "scheme"),
    [("small", "light"), ("hostile", "dark"), ("500 layers", "light"), ("small", "dark")],
)
def test_axe_finds_nothing_serious(
    browser: "Browser", pages: dict[str, Path], case: str, scheme: str
) -> None:
    """Names, roles, contrast, keyboard: by axe-core."""
    with opened(browser, pages[case], color_scheme=scheme) as found:
        assert serious(found) == []


def test_runs_are_compared(browser: "Browser", pages: dict[str, Path], tmp_path: Path) -> None:
    """Both answers and frontiers in one picture; layers that differ are found."""
    other = tmp_path / "other"
    result = made_up(NAMES["small"], seed=1)
    save_result(result, other, curve(result), ())
    page = report([pages["small"].parent, other], tmp_path / "both.html")
    results = (made_up(NAMES["small"], interact=True, score=SCORE), result)
    chosen = [[*found.assignment.precisions.values()] for found in results]
    differing = sum(a != b for a, b in zip(*chosen, strict=True))

    with opened(browser, page, "#runs svg") as found:
        found.page.check("#differing")

        assert found.page.locator("#layers [data-layer]:visible").count() == differing
        assert found.text("#found") == f"{differing} of 18 layers"
        assert found.page.locator("#answers tbody tr").count() == 2
        assert found.said == []
        assert serious(found) == []
        assert cut_on_paper(found) == []


def test_long_names_of_runs_have_room(
    browser: "Browser", pages: dict[str, Path], tmp_path: Path
) -> None:
    """In the picture's legend on a telephone, and in the table of answers on a screen."""
    other = tmp_path / "a-run-with-quite-a-long-name-of-its-own"
    result = made_up(NAMES["small"], seed=1)
    save_result(result, other, curve(result), ())
    page = report([pages["small"].parent, other], tmp_path / "both.html")
    beyond = (
        "[...document.querySelectorAll('#runs svg text')].filter(x => x.getBoundingClientRect()"
        ".right > document.querySelector('#runs svg').getBoundingClientRect().right + 1).length"
    )
    wider = "(x => x.scrollWidth - x.clientWidth)(document.querySelector('#answers').parentElement)"

    with opened(browser, page, "#runs svg", viewport={"width": 390, "height": 800}) as found:
        assert found.number(beyond) == 0
    with opened(browser, page, "#runs svg") as found:
        assert found.number(wider) <= 0


def test_a_click_on_a_point_changes_what_follows(small: Opened) -> None:
    """The first point of the frontier has fewer bits than the answer, and the tables are its."""
    before = small.text("#layers tbody:nth-of-type(1) [data-sum=w]")
    bytes_before = small.text("#chosen-facts")

    place = small.page.evaluate(MIDDLE_OF_THE_FIRST_POINT)
    small.page.mouse.click(*place)
    small.page.wait_for_function(
        "document.getElementById('chosen-label').textContent === 'frontier point 1'"
    )

    data = json.loads(small.page.locator("#data").text_content() or "")
    point = data["points"][0]
    shown = [small.text(f'#layers [data-layer="{k}"] td:nth-child(4)') for k in range(18)]
    layers = data["layers"]
    expected = [
        layers["precisions"][own[choice]]["p"]
        for own, choice in zip(layers["choices"], point["choices"], strict=True)
    ]
    assert shown == expected
    assert small.text("#layers tbody:nth-of-type(1) [data-sum=w]") != before
    assert small.text("#chosen-facts") != bytes_before
    assert small.text('#points [aria-current="true"] button') == "frontier point 1"
    assert small.text("#pairs tbody tr td") == point["pairs"][0][0]
    assert small.page.locator("#heat td.taken").count() == 18


def test_a_clicked_points_command_and_file_are_its_own(small: Opened) -> None:
    """Neither is the answer's: what is copied and what is downloaded is of the first point."""
    first = curve(made_up(NAMES["small"], interact=True, score=SCORE)).points[0]
    small.page.mouse.click(*small.page.evaluate(MIDDLE_OF_THE_FIRST_POINT))
    small.page.wait_for_function(
        "document.getElementById('chosen-label').textContent === 'frontier point 1'"
    )

    small.page.locator("#copy-command").click()
    small.page.wait_for_function(
        "document.getElementById('announced').textContent === 'The command is copied.'"
    )
    small.page.locator("#search").focus()
    small.page.keyboard.press("Control+V")
    with small.page.expect_download() as waiting:
        small.page.locator("#download").click()

    limit = written_limit("weight_bytes", first.cost, "bytes")
    assert small.page.input_value("#search") == (
        f"mpq search --no-safeguard --limit {limit} --output runs/a-point"
    )
    found = Assignment.from_json(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert found.precisions == first.precisions


def test_keys_choose_points(small: Opened) -> None:
    """The arrows go along the axis, and the table's buttons take Enter."""
    small.page.locator("#frontier").focus()
    before = small.text("#chosen-label")
    small.page.keyboard.press("ArrowLeft")
    left = small.text("#chosen-label")
    small.page.keyboard.press("ArrowRight")

    assert left != before
    assert small.text("#chosen-label") == before

    small.page.locator("#points button").nth(2).focus()
    small.page.keyboard.press("Enter")
    assert small.text("#chosen-label") == "frontier point 3"
    assert "frontier point 3 is chosen" in small.text("#announced")


def test_axes_can_be_switched(small: Opened) -> None:
    """The picture and its axes are then called so, and the table marks their columns."""
    small.page.select_option("#axis-x", "cost:latency")
    small.page.select_option("#axis-y", "measured")

    small.page.wait_for_function(
        "[...document.querySelectorAll('#frontier text')].some(x => x.textContent === 'latency')"
    )
    titles = small.page.locator("#frontier svg text").all_text_contents()
    assert "loss, measured [nats]" in titles
    assert small.text("#frontier-figure strong") == "Loss, measured against latency."
    marked = small.page.locator("#points th.drawn").all_text_contents()
    assert marked == ["Loss, measured [nats]", "latency"]

    small.page.select_option("#axis-y", "score")
    small.page.wait_for_function(
        "[...document.querySelectorAll('#frontier text')].some(x => x.textContent.includes('mAP'))"
    )
    # The answer and five uniform precisions have one, each drawn and there to be clicked.
    marks = small.page.locator("#frontier g.mark-symbol.role-mark").last
    assert marks.locator("path").count() == 6


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("upwards", [True, False])
def test_a_front_goes_the_way_that_is_better(small: Opened, across: bool, upwards: bool) -> None:
    """Whichever axis holds what should be large: whoever is on it, nobody betters."""
    rows = np.random.default_rng(0).integers(0, 9, (40, 2)).tolist()
    signs = [-1 if is_larger else 1 for is_larger in (across, upwards)]
    costs = {(x * signs[0], y * signs[1]) for x, y in rows}
    expected = [
        a for a in costs if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in costs)
    ]

    found = small.page.evaluate(
        "([rows, ax, ay]) => MPQ.frontOf(rows.map(([x, y]) => ({ x, y })), ax, ay)",
        [rows, {"larger": across}, {"larger": upwards}],
    )

    assert [(p["x"] * signs[0], p["y"] * signs[1]) for p in found] == sorted(expected)


@pytest.mark.parametrize(("x", "y"), [("measured", "cost:latency"), ("cost:latency", "measured")])
def test_what_was_measured_has_its_error_on_either_axis(small: Opened, x: str, y: str) -> None:
    """A bar for the answer and for each of five uniform precisions, along the axis."""
    small.page.select_option("#axis-x", x)
    small.page.select_option("#axis-y", y)
    small.page.wait_for_function(
        "[...document.querySelectorAll('#frontier .role-axis-title text')].length == 2"
    )

    side = "width" if x == "measured" else "height"
    bars = f"""[...document.querySelectorAll("#frontier g.mark-rule.role-mark line")]
      .filter(x => !x.getAttribute("stroke-dasharray") && x.getBBox().{side} > 0).length"""
    small.page.wait_for_function(f"{bars} === 6")


@pytest.mark.parametrize("row", [0, 4, 12])
def test_a_points_file_is_its_assignment(small: Opened, row: int) -> None:
    """What is downloaded is read by mpq, and equal to what Python would write."""
    result = made_up(NAMES["small"], interact=True, score=SCORE)
    frontier = curve(result)
    points = [*frontier.points, *result.beside("weight_bytes")]
    small.page.locator("#points button").nth(row).click()

    with small.page.expect_download() as waiting:
        small.page.locator("#download").click()
    found = Assignment.from_json(Path(waiting.value.path()).read_text(encoding="utf-8"))

    assert waiting.value.suggested_filename == "assignment.json"
    assert found.precisions == points[row].precisions
    assert found.fingerprint == result.assignment.fingerprint
    assert [x.activation_range for x in found.layers] == [
        x.activation_range for x in result.assignment.layers
    ]


def test_the_command_is_copied(small: Opened) -> None:
    """That of the chosen point, with its own limit and a folder of its own."""
    small.page.locator("#points button").nth(1).click()
    command = small.text("#command-shown")
    small.page.locator("#copy-command").click()

    small.page.wait_for_function(
        "document.getElementById('announced').textContent.startsWith('The command is')"
    )
    assert command.startswith("mpq search --no-safeguard --limit weight_bytes=")
    assert "20KiB" not in command
    assert command.endswith("--output runs/a-point")


def test_layers_are_searched_for(browser: "Browser", pages: dict[str, Path]) -> None:
    """500 layers are closed at first; a word opens those that have it."""
    with opened(browser, pages["500 layers"]) as found:
        rows = found.page.locator("#layers [data-layer]:visible")
        closed = rows.count()
        found.page.fill("#search", "layers.17.mlp")
        hits = rows.count()
        told = found.text("#found")
        # What is opened while something is searched for is what was found.
        found.page.click("#close-all")
        none = rows.count()
        found.page.click("#open-all")
        again = rows.count()
        found.page.fill("#search", "")
        found.page.locator("#layers .toggle").nth(3).click()

        assert closed == 0
        assert (hits, told) == (2, "2 of 500 layers")
        assert (none, again) == (0, 2)
        assert rows.count() == 4


def test_what_is_shown_without_the_script_is_what_it_shows(
    browser: "Browser", pages: dict[str, Path]
) -> None:
    """Numbers are written in Python and in JavaScript, in the same way."""
    where = ("#chosen-facts dd", "#layers td", "#pairs td")

    def texts(is_scripted: bool) -> list[list[str]]:
        drawn = "#frontier svg" if is_scripted else ""
        with opened(browser, pages["small"], drawn, java_script_enabled=is_scripted) as found:
            return [
                [text.strip() for text in found.page.locator(query).all_text_contents()]
                for query in where
            ]

    assert texts(True) == texts(False)


def test_500_layers_are_seen_soon(browser: "Browser", pages: dict[str, Path]) -> None:
    """Below a second where nothing else runs (benchmarks/page.py); here with room for others."""
    with opened(browser, pages["500 layers"]) as found:
        script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        painted_ms = found.number(script)

    assert painted_ms < 10_000
    assert pages["500 layers"].stat().st_size < 3_000_000
