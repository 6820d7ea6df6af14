"""The JSON that users take away: round trip, schema, and files that are no assignment."""

import copy
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpq
from mpq.errors import FileFormatError
from mpq.network.layer import WEIGHTLESS
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.problem.metadata import Metadata, UsedBudget
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.stored import StoredWeight, StoredWeights, signature_of

SPELLINGS = (
    *(f"w{bits}a{inputs}" for bits in range(2, 9) for inputs in (4, 8, 16, 32)),
    *("w4t", "w4z", "w4tz", "w4g128", "w4zg32a16", "w8a8s", "w8a8d", "w8a8sd"),
    *("w4g64sfp8", "wnf4g64sdqa16", "w8sdyadica8", "w4zg32sbf16", "w4zfg64a16"),
    *("fp8", "fp8_e5m2", "fp4", "bf16", "fp16", "fp32", "wfp8afp8d", "wfp4a8", "wbf16a8"),
)


def assignment(precision: str = "w4a8", **changes: Any) -> Assignment:
    """Two layers at one precision."""
    chosen = Precision.parse(precision)
    layers = (
        AssignedLayer("conv", "conv2d", (8, 3, 3, 3), chosen, ActivationRange(-1.5, 2.25)),
        AssignedLayer("fc", "linear", (10, 8), chosen),
    )
    return Assignment(layers, **changes)


def changed(*steps: str | int, to: Any) -> str:
    """The JSON of an assignment with one entry changed."""
    data = json.loads(assignment().to_json())
    inner = data
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = to
    return json.dumps(data)


def without(*steps: str | int) -> str:
    """The JSON of an assignment with one entry left out."""
    data = json.loads(assignment().to_json())
    inner = data
    for step in steps[:-1]:
        inner = inner[step]
    del inner[steps[-1]]
    return json.dumps(data)


def schema(root: Path) -> Any:
    """The committed schema, read as a file."""
    return json.loads((root / "mpq/problem/assignment.schema.json").read_text(encoding="utf-8"))


finite = st.floats(allow_nan=False, allow_infinity=False)
ranges = st.none() | st.builds(
    ActivationRange, finite.filter(lambda x: x <= 0), finite.filter(lambda x: x >= 0)
)
layers = st.builds(
    AssignedLayer,
    name=st.text(min_size=1),
    kind=st.sampled_from(["linear", "conv2d", "embedding"]),
    weight_shape=st.lists(st.integers(1, 4096), min_size=1, max_size=5).map(tuple),
    precision=st.sampled_from(SPELLINGS).map(Precision.parse),
    activation_range=ranges,
)
budgets = st.builds(UsedBudget, st.text(), st.sampled_from(["seconds", "bytes"]), finite, finite)
records = st.builds(
    Metadata,
    device=st.none() | st.text(),
    batch_size=st.integers(1, 512),
    budgets=st.lists(budgets, max_size=3).map(tuple),
    predicted_loss=st.none() | finite,
    measured_accuracy=st.none() | finite,
    seed=st.none() | st.integers(),
)


OTHER = Numerics("fp16", "bf16", "amax/127.5", "quotient", "llama.cpp")


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    """Layers of different names; those of one precision may be tied."""
    found = tuple(draw(st.lists(layers, min_size=1, max_size=4, unique_by=lambda x: x.name)))
    alike = [x.name for x in found if x.precision == found[0].precision]
    return Assignment(
        found,
        (tuple(alike),) if len(alike) > 1 and draw(st.booleans()) else (),
        {name: f"norm of {name}" for name in draw(st.lists(st.text(), max_size=2))},
        draw(st.sampled_from(["minmax", "percentile", "mse"])),
        draw(st.sampled_from([OWN, OTHER])),
        draw(records),
    )


@given(written=assignments())
def test_json_round_trip(written: Assignment) -> None:
    """What is read back equals what was written, in every format."""
    read = Assignment.from_json(written.to_json())

    assert read == written


@given(written=assignments())
def test_what_is_written_fits_the_committed_schema(written: Assignment, root: Path) -> None:
    """Other programs can rely on the schema: it is checked here without mpq's own reader."""
    data = json.loads(written.to_json())

    jsonschema.Draft202012Validator(schema(root)).validate(data)


def test_the_assignment_of_a_search_round_trips(
    result: mpq.SearchResult, tmp_path: Path, root: Path
) -> None:
    """A real one, with ranges, folded norms and a full record, fits the schema and is read back."""
    text = result.assignment.to_json()

    written = result.assignment.save(tmp_path)
    read = Assignment.load(tmp_path)
    jsonschema.Draft202012Validator(schema(root)).validate(json.loads(text))

    assert {path.name for path in written} == {"assignment.json", "assignment.safetensors"}
    assert read == result.assignment
    assert read.to_json() == text


def test_an_assignment_takes_the_place_of_another(result: mpq.SearchResult, tmp_path: Path) -> None:
    """The codes of the earlier one go with it: one that names none would be refused beside them."""
    result.assignment.save(tmp_path)
    later = replace(result.assignment, weights=None)

    later.save(tmp_path)

    assert Assignment.load(tmp_path) == later
    assert [path.name for path in tmp_path.iterdir()] == ["assignment.json"]


def test_the_json_states_the_formats_in_full() -> None:
    """A reader that does not know our spelling finds bits, scheme, granularity and group."""
    data = json.loads(assignment("w4g128a8d").to_json())

    assert data["layers"][1] == {
        "name": "fc",
        "kind": "linear",
        "weight_shape": [10, 8],
        "precision": "w4g128a8d",
        "weight": {
            "number": "int4",
            "bits": 4,
            "scheme": "symmetric",
            "granularity": "per_group",
            "group_size": 128,
        },
        "activation": {
            "number": "int8",
            "bits": 8,
            "scheme": "affine",
            "granularity": "per_token",
            "group_size": None,
            "range": None,
        },
    }


def test_the_fingerprint_is_a_plain_digest_of_names_kinds_and_shapes() -> None:
    """Anybody can recompute it; precisions are no part of it."""
    expected = hashlib.sha256(b"conv conv2d 8x3x3x3\nfc linear 10x8").hexdigest()

    found = {assignment("w4a8").fingerprint, assignment("w8a8").fingerprint}

    assert found == {expected}


def test_the_record_of_a_search_says_how_it_came_about(result: mpq.SearchResult) -> None:
    """Device, budgets with limit and use, losses, solver, proof, seed and versions are there."""
    record = json.loads(result.assignment.to_json())["metadata"]

    assert {key for key, value in record.items() if value is None} == {
        "phase",
        "tokens",
        "allow_randomness",
    }
    assert record["device"] == "cortex-m7"
    assert record["estimator"] == "auto"
    assert record["solver_status"] == "optimal"  # with interactions, and proved
    assert [budget["resource"] for budget in record["budgets"]] == ["weight_bytes", "latency"]
    assert all(budget["used"] <= budget["limit"] for budget in record["budgets"])
    assert record["num_held_out"] == 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: "),
        ("", "not JSON: "),
        ("[1, 2]", "at the top level: [1, 2] is not of type 'object'"),
        ("null", "at the top level: null is not of type 'object'"),
        ("{}", "is a required property"),
        (changed("schema_version", to=4), "schema version 4; this mpq reads version 3: update mpq"),
        (changed("schema_version", to="1"), "at schema_version: "),
        (changed("schema_version", to=0), "at schema_version: "),
        (without("metadata"), "'metadata' is a required property"),
        (changed("layers", to=[]), "at layers: "),
        (changed("layers", 1, "name", to=3), "at layers/1/name: 3 is not of type 'string'"),
        (changed("layers", 0, "weight_shape", to="8x3"), "at layers/0/weight_shape: '8x3' is not"),
        (changed("layers", 0, "weight_shape", 1, to=0), "at layers/0/weight_shape/1: 0 is less"),
        (
            changed("layers", 1, "weight", "number", to="int17"),
            "at layers/1/weight/number: 'int17'",
        ),
        (without("layers", 1, "weight", "scheme"), "at layers/1/weight: 'scheme' is a required"),
        (without("layers", 0, "activation", "range"), "at layers/0/activation: 'range' is a requ"),
        (changed("layers", 0, "activation", "range", to=[-1]), "at layers/0/activation/range: "),
        (changed("layers", 0, "activation", "range", to=[2, -1]), "range/0: 2 is greater than the"),
        (changed("layers", 0, "activation", "range", to=[1, 2]), "range/0: 1 is greater than the"),
        (changed("layers", 0, "activation", "range", to=[-2, -1]), "range/1: -1 is less than"),
        (
            changed("layers", 0, "activation", "range", to=[-1, float("inf")]),
            "layer 'conv': its activation range [-1, Infinity]: a range goes from a finite number",
        ),
        (
            changed("layers", 0, "activation", "range", to=[float("nan"), 1]),
            "layer 'conv': its activation range [NaN, 1]: a range goes from a finite number",
        ),
        (changed("layers", 0, "activation", "range", to=[-1, 10**400]), "layer 'conv': its activ"),
        (changed("ties", to=[["conv", "gone"]]), "a tie names 'gone', which is no layer"),
        (changed("ties", to=[["conv", "fc"]]), "layers, folding and ties do not have the finger"),
        (changed("folded_batch_norm", to={"conv": "bn"}), "layers, folding and ties do not have"),
        (changed("folded_batch_norm", to={"conv": "bn", "fc": "bn"}), "'bn' is there 2 times"),
        (changed("weight_range", to="best"), "at weight_range: no range method 'best'"),
        (changed("surprise", to=1), "unknown key 'surprise' (there are schema_version, "),
        (changed("tie", to=[]), "unknown key 'tie' (did you mean 'ties'?)"),
        (changed("metadata", "batch_size", to=0), "at metadata/batch_size: 0 is less"),
        (
            changed("fingerprint", to="0" * 64),
            "layers, folding and ties do not have the fingerprint that the file states",
        ),
        (
            changed("layers", 1, "weight_shape", to=[10, 9]),
            "layers, folding and ties do not have the fingerprint that the file states",
        ),
        (
            changed("layers", 1, "weight", "bits", to=5),
            "layer 'fc': its formats are not those of its precision w4a8",
        ),
        (
            changed("layers", 0, "precision", to="w8a8"),
            "layer 'conv': its formats are not those of its precision w8a8",
        ),
        (
            changed("layers", 0, "activation", "scheme", to="symmetric"),
            "layer 'conv': its formats are not those of its precision w4a8",
        ),
    ],
)
def test_text_that_is_no_assignment_is_refused(text: str, message: str) -> None:
    """The error says where the text departs from an assignment, and how."""
    with pytest.raises(FileFormatError, match=re.escape(message)):
        Assignment.from_json(text)


def test_a_misspelled_precision_is_refused() -> None:
    """A precision that cannot be parsed is named, and the message says how one is written."""
    text = changed("layers", 0, "precision", to="w17a8")

    with pytest.raises(FileFormatError, match="'w17a8' is not a precision: write w<bits>a<bits>"):
        Assignment.from_json(text)


def test_a_file_is_read(tmp_path: Path) -> None:
    """``load`` reads what ``to_json`` wrote."""
    path = tmp_path / "assignment.json"
    path.write_text(assignment().to_json(), encoding="utf-8")

    read = Assignment.load(path)

    assert read == assignment()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*a\.json: .*No such file"),
        (b"\x89PNG\r\n", r"cannot read .*a\.json"),
        (b"weights", r"a\.json: not JSON"),
        (b'{"schema_version": 7}', r"a\.json: assignment of schema version 7"),
        (
            changed("layers", 0, "precision", to="w17a8").encode(),
            r"a\.json: layer 'conv': 'w17a8' is not a prec",
        ),
    ],
    ids=["missing", "binary", "text", "future", "precision"],
)
def test_a_file_that_is_no_assignment_is_named(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    """Whatever is wrong, the error names the file."""
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(mpq.InputError, match=message):
        Assignment.load(path)


def test_a_folder_of_a_run_is_its_assignment(tmp_path: Path) -> None:
    """The folder that a search has written; one without the file is one clear error."""
    with pytest.raises(FileFormatError, match=r"cannot read .*assignment\.json"):
        Assignment.load(tmp_path)
    (tmp_path / "assignment.json").write_text(assignment().to_json())

    assert Assignment.load(tmp_path) == assignment()


def test_precisions_by_name() -> None:
    """The mapping that most code wants."""
    found = copy.copy(assignment("w3a8")).precisions

    assert found == {"conv": Precision.parse("w3a8"), "fc": Precision.parse("w3a8")}


def test_ties_that_the_precisions_break_are_refused() -> None:
    """Layers that share a precision have one: the solver gave them one."""
    first, second = assignment().layers
    other = replace(second, precision=Precision.parse("w8a8"))
    mixed = Assignment((first, other), (("conv", "fc"),))

    with pytest.raises(FileFormatError, match="tied layers share a precision; got 'conv' at w4a8"):
        Assignment.from_json(mixed.to_json())


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_earlier_versions_are_read(version: int) -> None:
    """Their fingerprint is of the layers alone, and a range may lie beside 0, which grids widen."""
    written = assignment(ties=(("conv", "fc"),), folded={"conv": "bn"})
    data = json.loads(written.to_json()) | {
        "schema_version": version,
        "fingerprint": assignment().fingerprint,
    }
    data["layers"][0]["activation"]["range"] = [1.5, 2.25]

    read = Assignment.from_json(json.dumps(data))

    assert read.layers[0].activation_range == ActivationRange(0.0, 2.25)
    assert (read.ties, read.folded) == (written.ties, written.folded)


@pytest.mark.parametrize("version", [1, 2])
def test_a_range_the_wrong_way_round_is_refused_in_every_version(version: int) -> None:
    """No grid was ever meant by it."""
    data = json.loads(changed("layers", 0, "activation", "range", to=[2, -1]))

    with pytest.raises(FileFormatError, match="at layers/0/activation/range"):
        Assignment.from_json(json.dumps(data | {"schema_version": version}))


def test_the_fingerprint_covers_folding_and_ties() -> None:
    """A line for each follows those of the layers, so that anybody can recompute it."""
    text = b"conv conv2d 8x3x3x3\nfc linear 10x8\nfold conv bn\ntie conv fc"

    found = assignment(ties=(("conv", "fc"),), folded={"conv": "bn"}).fingerprint

    assert found == hashlib.sha256(text).hexdigest()


def test_an_assignment_beside_another_runs_files_is_refused(tmp_path: Path) -> None:
    """A run that was killed between two renames leaves such a folder."""
    marks = {"assignment.json": "0" * 16, "problem.json": "0" * 15 + "1"}
    data = json.loads(assignment().to_json())
    for name, mark in marks.items():
        (tmp_path / name).write_text(json.dumps(data | {"run_id": f"mpq-run-{mark}"}))

    with pytest.raises(FileFormatError, match="holds files of 2 runs"):
        Assignment.load(tmp_path / "assignment.json")
    (tmp_path / "problem.json").unlink()
    assert Assignment.load(tmp_path / "assignment.json") == assignment()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("ends", "read"),
    [([1, 1], (0.0, 1.0)), ([-2, -1.5], (-2.0, 0.0)), ([0, 0], (0.0, 0.0)), ([-1, 2], (-1.0, 2.0))],
)
def test_ranges_of_earlier_versions_are_widened_to_0(
    version: int, ends: list[float], read: tuple[float, float]
) -> None:
    """On either side, also one of a single number."""
    data = json.loads(changed("layers", 0, "activation", "range", to=ends))

    found = Assignment.from_json(json.dumps(data | {"schema_version": version}))

    assert found.layers[0].activation_range == ActivationRange(*read)
    assert found.layers[1].activation_range is None


@pytest.mark.parametrize("ends", [[1], [True, 2], [1, True], [1, 2, 3], ["1", 2], 7, {}])
@pytest.mark.parametrize("version", [1, 3])
def test_what_is_no_range_is_refused_by_its_place(version: int, ends: Any) -> None:
    """Whatever earlier versions may have meant by it."""
    data = json.loads(changed("layers", 0, "activation", "range", to=ends))

    with pytest.raises(FileFormatError, match="at layers/0/activation/range"):
        Assignment.from_json(json.dumps(data | {"schema_version": version}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": assignment().layers[:1] * 3 + assignment().layers[1:]},
            "the layer 'conv' is there 3 times",
        ),
        (
            {"folded": {"conv": "bn", "fc": "bn"}},
            "the folded BatchNorm 'bn' is there 2 times",
        ),
    ],
)
def test_what_is_there_twice_is_refused(changes: dict[str, Any], message: str) -> None:
    """With the name, and how often."""
    written = replace(assignment(), **changes)

    with pytest.raises(FileFormatError) as caught:
        Assignment.from_json(written.to_json())

    assert str(caught.value) == f"not a valid assignment: {message}"


def test_a_file_is_indented_by_one() -> None:
    """So that a difference of two files is one of lines; the last line ends."""
    text = assignment().to_json()

    assert text.startswith('{\n "schema_version": 3,\n "fingerprint": "')
    assert text.endswith("\n}\n")
    assert '"numerics"' not in text
    assert '"transposed"' not in text


def test_what_few_assignments_have_comes_back() -> None:
    """Other numerics, and a layer whose weight is transposed."""
    first, second = assignment().layers
    layers = (replace(first, is_transposed=True), second)
    written = replace(assignment(), layers=layers, numerics=Numerics(scale="bf16"))

    data = json.loads(written.to_json())

    assert data["numerics"]["scale"] == "bf16"
    assert [layer.get("transposed") for layer in data["layers"]] == [True, None]
    assert Assignment.from_json(written.to_json()) == written


@pytest.mark.parametrize(
    ("metric", "seed", "expected"),
    [(None, None, ("kl", 5)), ("mse", None, ("mse", 5)), (None, 0, ("kl", 0)), ("x", 7, ("x", 7))],
)
def test_outputs_may_be_compared_otherwise(
    metric: str | None, seed: int | None, expected: tuple[str, int]
) -> None:
    """What is not said stays as in the search; a seed of 0 is one."""
    made = assignment(metadata=Metadata(metric="kl", allow_randomness=5, seed=9))

    found = made.compared_by(metric, seed)

    known = found.metadata
    assert (known.metric, known.allow_randomness, known.seed) == (*expected, 9)
    assert found.layers == made.layers


def with_weights(precision: str = "w4a8", layer: str = "fc") -> Assignment:
    """An assignment one of whose weights was rounded with regard to data."""
    rows = np.arange(80.0).reshape(10, 8)
    codes = (np.arange(80).reshape(10, 8) % 8).astype(np.int8)
    scale, point = np.full((10, 1), 0.5, np.float32), np.zeros((10, 1), np.int32)
    weight = StoredWeight(codes, scale, point, signature_of(rows))
    return assignment(precision, weights=StoredWeights("gptq:damping=0.02", {layer: weight}))


def saved(folder: Path, found: Assignment) -> Path:
    """Both files of an assignment."""
    assert found.weights is not None
    (folder / "assignment.json").write_text(found.to_json())
    (folder / "assignment.safetensors").write_bytes(found.weights.content)
    return folder / "assignment.json"


def test_weights_are_in_a_file_beside_it(tmp_path: Path) -> None:
    found = with_weights()
    again = Assignment.load(saved(tmp_path, found))
    assert again == found
    assert again.weights is not None
    assert again.weights.rounding == "gptq:damping=0.02"
    assert again != assignment()
    data = json.loads(found.to_json())
    assert data["weights"]["file"] == "assignment.safetensors"
    assert "weights" not in json.loads(assignment().to_json())  # files stay as they were


def test_a_json_without_its_weights_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, with_weights())
    (tmp_path / "assignment.safetensors").unlink()
    with pytest.raises(FileFormatError, match="No such file or directory.*copy all files"):
        Assignment.load(path)
    with pytest.raises(FileFormatError, match="'gptq:damping=0.02'.*read all files"):
        Assignment.from_json(path.read_text())


def test_weights_of_another_run_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, with_weights())
    other = with_weights(layer="conv").weights
    assert other is not None
    (tmp_path / "assignment.safetensors").write_bytes(other.content)
    with pytest.raises(FileFormatError, match="their SHA-256 is another"):
        Assignment.load(path)


def test_more_bits_by_hand_are_refused(tmp_path: Path) -> None:
    """Codes of 4 bits fit into 6, and the weight would be the same one in more bytes."""
    path = saved(tmp_path, with_weights())
    four, six = (json.loads(with_weights(x).to_json()) for x in ("w4a8", "w6a8"))
    path.write_text(json.dumps({**six, "weights": four["weights"]}))
    with pytest.raises(FileFormatError, match="codes are of other formats than layers have.*by ha"):
        Assignment.load(path)


@pytest.mark.parametrize("name", ["../assignment.safetensors", "/etc/passwd", "other.safetensors"])
def test_no_other_file_is_read(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, with_weights())
    path.write_text(path.read_text().replace("assignment.safetensors", name))
    with pytest.raises(FileFormatError, match="at weights/file"):
        Assignment.load(path)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (with_weights("w2a8"), "layer 'fc' is at w2a8, but its codes reach from 0 to 7"),
        (with_weights("w4za8"), "layer 'fc' is at w4za8, but its codes are 80 of int8"),
        (with_weights("fp16"), "layer 'fc' is at fp16, but its codes are of a format with scales"),
        (with_weights(layer="conv"), "layer 'conv' is at w4a8, but its codes are 80 of int8"),
        (with_weights(layer="gone"), "its weights have 'gone', which is no layer"),
    ],
)
def test_weights_that_contradict_the_layers_are_refused(
    tmp_path: Path, found: Assignment, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        Assignment.load(saved(tmp_path, found))


@pytest.mark.parametrize("kind", WEIGHTLESS)
def test_layers_without_weights_are_read_again(kind: str) -> None:
    """Caches and operands of every kind have no numbers in their weights."""
    layer = AssignedLayer(f"a.{kind}", kind, (2, 4, 0), Precision.parse("w32a4d"))
    found = Assignment((layer,))
    assert Assignment.from_json(found.to_json()) == found
