"""The pages of docs/targets say what the targets do: every precision of their tables is asked."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from mpq.backends import BACKENDS
from mpq.backends.compressed_tensors import CompressedTensors
from mpq.backends.target import Target
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import Precision

FOLDER = Path(__file__).parents[1] / "docs" / "targets"
TARGETS = {
    "auto-round": "auto-round",
    "c": "c",
    "compressed-tensors": "compressed-tensors",
    "gguf": "gguf",
    "litert": "litert",
    "mlx": "mlx",
    "onnx": "onnx-qdq",
    "openvino": "openvino",
    "torchao": "torchao",
}
"""Page to target; recipes are none."""
HEADINGS = [
    "Install",
    "Search and export",
    "What it holds",
    "Ties",
    "Bytes",
    "Arithmetic",
    "How it is checked",
    "Running it",
    "What it refuses",
    "Not run here",
]
LAYERS = {
    "linear": ("l", "linear", (256, 512)),
    "conv1d": ("l", "conv1d", (32, 64, 3)),
    "conv2d": ("l", "conv2d", (32, 64, 3, 3)),
    "depthwise conv2d": ("l", "conv2d", (32, 1, 3, 3)),
    "conv3d": ("l", "conv3d", (8, 4, 3, 3, 3)),
    "transposed conv2d": ("l", "conv_transpose2d", (32, 64, 3, 3)),
    "embedding": ("l", "embedding", (320, 256)),
    "fused expert": ("mlp.experts.down_proj.0", "linear", (256, 512)),
}
"""What a layer of a table is asked as: name, kind, shape of the weight."""
BF16 = ", network in bf16"
RANGE = re.compile(r"`w(\d)(\w*)` to `w(\d)\2`|`([^`]+)`")


def section(page: str, heading: str) -> str:
    """The text under a heading."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose head begins with these words, without the head."""
    table = text.partition(first)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def spelled(cell: str) -> list[str]:
    """Every precision of a cell; from one number of bits to another, all between them."""
    found: list[str] = []
    for match in RANGE.finditer(cell):
        low, suffix, high, one = match.groups()
        found += [one] if one else [f"w{b}{suffix}" for b in range(int(low), int(high) + 1)]
    return found


def asked(target: Target, layer: str, precision: str) -> str:
    """Why the target refuses a precision in a layer of a table; empty: it does not."""
    if layer.endswith(BF16):
        assert isinstance(target, CompressedTensors)
        return asked(replace(target, dtype=torch.bfloat16), layer.removesuffix(BF16), precision)
    found = Precision.parse(precision)
    return target.refusal(AssignedLayer(*LAYERS[layer], found), found)


def layers_of(cell: str) -> list[str]:
    """The layers that a row is of."""
    return [cell] if cell.endswith(BF16) else cell.split(", ")


def target_of(page: str) -> Target:
    """The page's."""
    found = BACKENDS.build(TARGETS[page])
    assert isinstance(found, Target)
    return found


def test_every_target_has_a_page() -> None:
    """A target that no page names is one that nobody finds."""
    targets = {name for name in BACKENDS.names() if isinstance(BACKENDS.build(name), Target)}

    assert targets == set(TARGETS.values())
    assert {page.stem for page in FOLDER.glob("*.md")} == {*TARGETS, "recipes"}


@pytest.mark.parametrize("page", [*TARGETS, "recipes"])
def test_pages_have_the_same_headings(page: str) -> None:
    """In one order, and none of them empty."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")

    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    assert all(section(page, heading).strip() for heading in HEADINGS)


@pytest.mark.parametrize("page", TARGETS)
def test_what_a_page_says_is_held_is_held(page: str) -> None:
    """Every weight of a row with every input of it, in every layer of it."""
    target = target_of(page)
    table = rows(section(page, "What it holds"), "| layer |")
    wanted = [
        (layer, f"{weight}{read}")
        for layers, weights, inputs in table
        for layer, weight, read in product(layers_of(layers), spelled(weights), spelled(inputs))
    ]

    refused = {each: why for each in wanted if (why := asked(target, *each))}

    assert wanted
    assert refused == {}


@pytest.mark.parametrize("page", TARGETS)
def test_what_a_page_says_is_refused_is_refused(page: str) -> None:
    """With some reason: the page's words are for people."""
    target = target_of(page)
    table = rows(section(page, "What it refuses"), "| layer |")
    wanted = [
        (layer, precision)
        for layers, precisions, _ in table
        for layer, precision in product(layers_of(layers), spelled(precisions))
    ]

    held = [each for each in wanted if not asked(target, *each)]

    assert wanted
    assert held == []


@pytest.mark.parametrize("page", TARGETS)
def test_a_page_has_the_candidates_of_its_target(page: str) -> None:
    """Those of a search without ``--precisions``, in their order."""
    text = " ".join(section(page, "What it holds").split())

    stated = re.search(r"no candidates are given: ([^.]+)\.", text)

    assert stated is not None
    assert tuple(spelled(stated[1])) == target_of(page).candidates


@pytest.mark.parametrize("page", TARGETS)
def test_a_page_names_the_extra_of_its_target(page: str) -> None:
    """The line that the errors name, too."""
    extra = target_of(page).extra
    line = f"pip install 'mpq[{extra}]'" if extra else "Nothing beside mpq"

    assert line in section(page, "Install")
