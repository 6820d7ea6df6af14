"""A network that does not fit into memory: the same answer, block by block from its files."""

import json
import mmap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.utils import parametrize

import mpq
from mpq._support import pages
from mpq.backends import compressed_tensors_layout, streamed
from mpq.backends.compressed_tensors import CompressedTensors
from mpq.backends.decoded import DecodedWeight
from mpq.cli.__main__ import app
from mpq.cli.loading import load_folder
from mpq.errors import InputError, ModelError
from mpq.network.mapped import streaming, unmapped_bytes
from mpq.quantization.stored import WEIGHTS_FILE
from mpq.sensitivity.passes.moment_mixing import SecondMoments
from mpq.sensitivity.passes.second_moments import PartialMoments
from mpq.workflows.plan import plan
from mpq.workflows.quantized_file import save_quantized
from mpq.workflows.shown_examples import MomentParts

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(
    not pages.can_stream(), reason="only Linux says which pages are a file's"
)
CANDIDATES = ("w2g64", "w4a8", "w8g64")
SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 2.6 M random weights in several files; its configuration keeps a cache."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that rounding changes something
    model.save_pretrained(path, max_shard_size="5MB")
    return path


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> str:
    """A size that the network alone does not fit into; the process itself counts nothing."""
    monkeypatch.setattr(streamed, "resident_bytes", lambda: 0)
    return "16MB"


def data() -> list[dict[str, torch.Tensor]]:
    """8 sequences of 12 words in batches of 4."""
    ids = torch.randint(512, (8, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": part} for part in ids.split(4)]


def task(model: nn.Module, **options: Any) -> mpq.Task:
    """With nothing that data chooses."""
    return mpq.Task(
        model, data(), data(), **{"candidates": CANDIDATES, "rounding": "nearest", **options}
    )


def found(
    asked: mpq.Task, sensitivity: str = "sketch", limit: str = "weight_bytes=0.7x:w8g64"
) -> mpq.SearchResult:
    """What is searched everywhere here."""
    return mpq.search(asked, [limit], sensitivity=sensitivity)


def most_bytes(model: nn.Module, more: list[torch.Tensor], act: Callable[[], object]) -> int:
    """The most of the large weights, and of other mapped tensors, that is in memory at a call."""
    looked_at = [p for p in (*model.parameters(), *more) if p.numel() >= 2**16]
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        there = 0
        for tensor in looked_at:
            first = tensor.data_ptr() // mmap.PAGESIZE
            count = tensor.numel() * tensor.element_size() // mmap.PAGESIZE
            flags = pages.page_flags(first, count)
            there += int((flags & pages.PRESENT != 0).sum())
        most = max(most, there * mmap.PAGESIZE)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        act()
    finally:
        handle.remove()
    return most


@pytest.mark.parametrize(
    ("sensitivity", "options"),
    [
        ("sketch:num_probes=2", {}),
        ("auto", {}),
        ("fisher", {}),
        ("layer-output", {}),
        ("weight-error", {"to": "compressed-tensors", "candidates": ("w4g64", "w8g64")}),
    ],
)
def test_numbers_are_those_without(
    folder: Path, tight: str, sensitivity: str, options: dict[str, Any]
) -> None:
    """Table, measured losses and assignment; and the result says what was done."""
    if "to" in options:
        pytest.importorskip("compressed_tensors")
    expected = found(task(load_folder(folder), **options), sensitivity)

    result = found(task(load_folder(folder), memory=tight, **options), sensitivity)

    assert expected.provenance.streamed == ""
    assert "is streamed from its files, block by block" in result.provenance.streamed
    assert result.problem.loss.values == pytest.approx(expected.problem.loss.values, rel=1e-5)
    assert expected.problem.loss.values.max() > 0
    losses, others = (
        [row.measured.divergence for row in each.comparisons] for each in (result, expected)
    )
    assert losses == pytest.approx(others, rel=1e-5)
    assert result.columns.tolist() == expected.columns.tolist()
    assert result.assignment.precisions == expected.assignment.precisions


@pytest.mark.parametrize(
    ("rounding", "is_kept"),
    [
        ("gptq", False),
        ("gptq", True),
        ("coordinate-descent:rounds=1,sweeps=1", False),
        # Of random weights codes do not help: it makes its passes, and rounds to nearest.
        ("auto", True),
    ],
)
def test_codes_are_those_without(
    folder: Path,
    tight: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rounding: str,
    is_kept: bool,
) -> None:
    """To the last bit, by second moments of some layers in one pass and of others in the next."""
    options: dict[str, Any] = {"rounding": rounding, "candidates": ("w2g64", "w8g64")}
    asked_for = ("sketch:num_probes=1", "weight_bytes=0.7x:w8g64")
    if rounding == "auto":  # rounds as often as there are shares
        options["rules"] = mpq.Rules(include=["model.layers.1.self_attn.*"])
        asked_for = ("sketch:num_probes=1", "effective_bits=5")
    expected = found(task(load_folder(folder), **options), *asked_for)
    passes: list[int] = []
    collect = PartialMoments.of.__func__  # type: ignore[attr-defined]

    def counted(kind: type[PartialMoments], *given: Any, **more: Any) -> PartialMoments:
        passes.append(len(more["layers"]))
        collected: PartialMoments = collect(kind, *given, **more)
        return collected

    monkeypatch.setattr(PartialMoments, "of", classmethod(counted))
    cache = tmp_path / "kept" if is_kept else None
    asked = task(load_folder(folder), memory=tight, cache=cache, **options)

    result = found(asked, *asked_for)

    assert len(passes) > 2
    assert max(passes) < len(result.layers)
    assert result.assignment.weights == expected.assignment.weights
    assert (expected.assignment.weights is None) == (rounding == "auto")
    assert result.provenance.rounding_unhelped == expected.provenance.rounding_unhelped
    assert result.problem.loss.values == pytest.approx(expected.problem.loss.values, rel=1e-5)
    assert result.columns.tolist() == expected.columns.tolist()
    losses, others = (
        [row.measured.divergence for row in each.comparisons] for each in (result, expected)
    )
    assert losses == pytest.approx(others, rel=1e-5)


def test_codes_lie_in_files(folder: Path, tight: str, tmp_path: Path) -> None:
    """Those of the answer as well; and what is saved of it is what memory would have saved."""
    asked = task(load_folder(folder), rounding="gptq", candidates=("w2g64", "w8g64"))
    found(asked).save(tmp_path / "whole")

    result = found(replace(asked, model=load_folder(folder), memory=tight))
    result.save(tmp_path / "streamed")

    weights = result.assignment.weights
    assert weights is not None
    arrays = [torch.from_numpy(w.codes) for w in weights.by_layer.values()]
    assert unmapped_bytes(arrays) == 0
    files = (tmp_path / name / WEIGHTS_FILE for name in ("whole", "streamed"))
    assert len({file.read_bytes() for file in files}) == 1


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search's files, with codes that data chose."""
    path = tmp_path_factory.mktemp("run")
    rules = mpq.Rules(exclude=["model.embed_tokens"])
    asked = task(load_folder(folder), rounding="gptq", candidates=("w4a8", "w8g64"), rules=rules)
    found(asked, "weight-error").save(path)
    return path


def test_an_assignment_is_evaluated_so(folder: Path, run: Path, tight: str) -> None:
    """The same numbers, where codes stay in their file; and the model is left as it was."""
    model = load_folder(folder)
    expected = mpq.evaluate(model, mpq.Assignment.load(run), data())
    with streaming():
        assignment = mpq.Assignment.load(run)

    measured = mpq.evaluate(model, assignment, data(), memory=tight)

    assert assignment == mpq.Assignment.load(run)
    assert measured["quantized"].divergence > 0
    for name, found_there in expected.items():
        assert measured[name].divergence == pytest.approx(found_there.divergence, rel=1e-5)
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_little_is_in_memory_when_it_is_evaluated(folder: Path, run: Path, tight: str) -> None:
    """Neither the network nor its codes."""
    model = load_folder(folder)
    with streaming():
        assignment = mpq.Assignment.load(run)
    assert assignment.weights is not None
    codes = [torch.from_numpy(w.codes) for w in assignment.weights.by_layer.values()]

    most = most_bytes(model, codes, lambda: mpq.evaluate(model, assignment, data(), memory=tight))

    # Of tensors this small a system that reads ahead brings their neighbours.
    whole = sum(p.numel() * p.element_size() for p in (*model.parameters(), *codes))
    assert 0 < most < whole / 2


def test_what_does_not_fit_is_refused_where_it_is_evaluated(run: Path, folder: Path) -> None:
    """With the sizes."""
    with pytest.raises(InputError, match="streamed it holds at least"):
        mpq.evaluate(load_folder(folder), mpq.Assignment.load(run), data(), memory="100KB")


def test_rounded_weights_are_written_so(
    folder: Path, run: Path, tight: str, tmp_path: Path
) -> None:
    """The file is that of memory, byte for byte: the state dict of what ``quantize`` makes."""
    model, assignment = load_folder(folder), mpq.Assignment.load(run)
    state = mpq.quantize(model, assignment).state_dict()
    tensors = {name: tensor.detach().clone() for name, tensor in state.items()}
    expected = save(tensors, {"mpq_fingerprint": assignment.fingerprint})

    (whole,) = save_quantized(model, assignment, tmp_path / "whole.safetensors")
    (streamed_file,) = save_quantized(model, assignment, tmp_path / "parts.safetensors", tight)

    assert whole.read_bytes() == expected
    assert streamed_file.read_bytes() == expected


def test_an_export_is_that_of_memory(folder: Path, run: Path, tight: str, tmp_path: Path) -> None:
    """Byte for byte; each weight is decoded by the tool's reader, and what was not done is said."""
    pytest.importorskip("compressed_tensors")
    model, assignment = load_folder(folder), mpq.Assignment.load(run)
    to = "compressed-tensors"
    mpq.export(assignment, tmp_path / "whole", to, model, data())

    made = mpq.export(assignment, tmp_path / "parts", to, model, data(), memory=tight)

    for name in ("model.safetensors", "config.json", "generation_config.json"):
        whole, parts = (tmp_path / each / name for each in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()
    check, expected = (
        json.loads((tmp_path / each / "export.json").read_text()) for each in ("parts", "whole")
    )
    assert made.deviation is None
    assert "not run, as it would not fit into memory" in made.verdict
    assert "is streamed from its files" in check["streamed"]
    assert {f"Linear {kind}": n for kind, n in check["kinds"].items()} == expected["kinds"]
    same = ("num_layers", "file_bytes", "predicted_bytes", "promised_bytes", "dtype")
    assert {name: check[name] for name in same} == {name: expected[name] for name in same}
    assert check["num_layers"] > 0
    assert 0 <= check["max_weight_difference"] <= 1e-6


def test_an_export_of_a_network_in_half_precision(
    folder: Path, tight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every layout; what is decoded, in parts, is compared in float32, in which it is exact."""
    pytest.importorskip("compressed_tensors")
    assert tight
    monkeypatch.setattr(compressed_tensors_layout, "CHANNELS_AT_ONCE", 100)
    half = tmp_path / "half"
    load_folder(folder).bfloat16().save_pretrained(half)  # type: ignore[operator]
    chosen = {
        "*.self_attn.*": "nvfp4",
        "*.gate_proj": "mxfp4",
        "*.up_proj": "mxfp4",
        "model.layers.0.*.down_proj": "w8a8",
        "model.layers.1.*.down_proj": "w4t",
        "lm_head": "wfp8a32",
    }
    rules, to = mpq.Rules(exclude=["model.embed_tokens"], fix=chosen), "compressed-tensors"
    asked = task(load_folder(half), candidates=("w3g64", "w8g64"), to=to, rules=rules)
    assignment = found(asked, "weight-error", "effective_bits=16").assignment

    mpq.export(assignment, tmp_path / "made", to, load_folder(half), data(), memory="9MB")

    check = json.loads((tmp_path / "made" / "export.json").read_text())
    assert "is streamed" in check["streamed"]
    assert check["dtype"] == "bfloat16"
    assert check["was_searched_for"]
    assert len(check["kinds"]) == 6
    assert check["max_weight_difference"] <= 1e-6


def test_an_export_that_decodes_to_something_else(
    folder: Path, run: Path, tight: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is refused with the layer's name, and nothing is left."""
    pytest.importorskip("compressed_tensors")
    decoded = CompressedTensors.decoded

    def wrong(target: CompressedTensors, folder: Path) -> Iterator[DecodedWeight]:
        return (replace(each, weight=each.weight * 1.001) for each in decoded(target, folder))

    monkeypatch.setattr(CompressedTensors, "decoded", wrong)

    with pytest.raises(ModelError, match=r"the weight of layer 'model\.layers\.0.*another one"):
        mpq.export(
            mpq.Assignment.load(run), tmp_path / "made", "compressed-tensors",
            load_folder(folder), data(), memory=tight,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["onnx-qdq", "gguf", "mlx", "aimet"])
def test_targets_that_are_not_streamed(
    folder: Path, run: Path, tight: str, tmp_path: Path, to: str
) -> None:
    """By name, with those that are, before anything runs."""
    assignment = mpq.Assignment.load(run)
    message = f"`mpq export --to {to}` is not done so: of the targets compressed-tensors is"

    with pytest.raises(InputError, match=message):
        mpq.export(assignment, tmp_path / "made", to, load_folder(folder), data(), memory=tight)


def test_a_result_says_so_when_it_is_read_again(folder: Path, tight: str, tmp_path: Path) -> None:
    """In the file as well."""
    result = found(task(load_folder(folder), memory=tight))

    result.save(tmp_path / "run")

    assert mpq.load(tmp_path / "run").provenance.streamed == result.provenance.streamed


@pytest.mark.parametrize("sensitivity", ["sketch", "fisher"])
def test_little_of_the_network_is_in_memory_at_once(
    folder: Path, tight: str, sensitivity: str
) -> None:
    """At every call of a module: a block and the tables, not the network."""
    model = load_folder(folder)

    most = most_bytes(model, [], lambda: found(task(model, memory=tight), sensitivity))

    weights = [p for p in model.parameters() if p.numel() >= 2**16]
    whole = sum(weight.untyped_storage().nbytes() for weight in weights)
    block = sum(p.numel() * 4 for p in model.get_submodule("model.layers.0").parameters())
    assert block < whole / 3.9
    assert 0 < most < 1.6 * block


def test_the_model_is_left_as_it_was(folder: Path, tight: str) -> None:
    """Weights, forwards, hooks and configuration."""
    model = load_folder(folder)
    before = {name: p.clone() for name, p in model.named_parameters()}

    found(task(model, memory=tight))

    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not torch.nn.modules.module._global_forward_hooks
    assert all("forward" not in vars(m) and not m._forward_pre_hooks for m in model.modules())
    config: Any = model.config
    assert config.use_cache


def test_a_frontier_is_measured_streamed(folder: Path, tight: str) -> None:
    """Its points are those without."""
    expected, points = (
        mpq.frontier(
            task(load_folder(folder), memory=memory), "weight_bytes", num_points=3, measure=True
        )
        for memory in (None, tight)
    )

    assert [p.measured.divergence for p in points.points if p.measured] == pytest.approx(
        [p.measured.divergence for p in expected.points if p.measured], rel=1e-5
    )


def test_what_fits_is_not_streamed(folder: Path) -> None:
    """Neither within what is allowed nor within what the machine has."""
    model = load_folder(folder)

    assert task(model).streamed == ""
    assert task(model, memory="1000GB").streamed == ""


def test_what_data_chooses_needs_memory_as_well(folder: Path, tight: str) -> None:
    """Weights and rounded ones fit, second moments and codes beside them do not."""
    assert tight
    model = load_folder(folder)
    whole = 2 * sum(p.numel() * 4 for p in model.parameters())

    plain, chosen = (
        task(model, memory=f"{whole + 1000}B", rounding=rounding).streamed
        for rounding in ("nearest", "gptq")
    )

    assert plain == ""
    assert "it is streamed" in chosen


def test_a_plan_is_made_so(folder: Path, tight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rounding with regard to data: by second moments of some layers at a time."""
    groups: list[int] = []
    totals = MomentParts.totals

    def counted(parts: MomentParts, indices: Any) -> Iterator[SecondMoments]:
        for found_of_some in totals(parts, indices):
            groups.append(len(found_of_some.values))
            yield found_of_some

    monkeypatch.setattr(MomentParts, "totals", counted)
    asked = task(load_folder(folder), memory=tight, rounding="gptq", candidates=("w4g64",))

    planned = plan(asked, sensitivity="weight-error")

    assert len(groups) > 1
    assert {"second moments", "codes of weights"} <= {phase.name for phase in planned.phases}


def test_it_is_chosen_where_the_machine_is_small(
    folder: Path, tight: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an option, and the reason is said."""
    monkeypatch.setattr(streamed, "machine_bytes", lambda: 16_000_000)

    why = task(load_folder(folder)).streamed

    assert "of the 0.0149 GiB that this machine has: it is streamed" in why


def test_weights_in_memory_cannot_be_streamed(tight: str) -> None:
    """The message has the sizes, and says what to give instead."""
    model = nn.Sequential(nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 1000)).eval()

    with pytest.raises(InputError, match=r"0\.0224 GiB of weights.*have to lie in files"):
        found(mpq.Task(model, [torch.zeros(4, 2000)], memory=tight))


def test_memory_that_is_too_small_for_one_weight(folder: Path, tight: str) -> None:
    """Before anything runs."""
    with pytest.raises(InputError, match="streamed it holds at least .* its largest weight has"):
        found(task(load_folder(folder), memory="100KB"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rounding": "gptq", "sequential_rounding": True},
            r"sequential_rounding \(--sequential-rounding\) is not done so",
        ),
        ({"transforms": ["equalize"]}, r"transforms \(--transform\) is not done so"),
        ({"tune": "scales"}, r"tune \(--tune\) is not done so"),
        ({"recalibrate": True}, r"recalibrate \(--recalibrate\) is not done so"),
        ({"bias_correction": True}, r"bias_correction \(--bias-correction\) is not done so"),
        ({"allow_randomness": 1}, r"allow_randomness \(--allow-randomness\) is not done so"),
        (
            {"to": "onnx-qdq", "candidates": ["w4a8", "w8a8"]},
            r"a graph for to=onnx-qdq \(--to\) is not done so",
        ),
    ],
)
def test_what_is_not_streamed_is_refused(
    folder: Path, tight: str, options: dict[str, Any], message: str
) -> None:
    """By name, before anything runs."""
    with pytest.raises(InputError, match=message):
        found(task(load_folder(folder), memory=tight, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensitivity": "first-order"}, "sensitivity=first-order is not done so: of the estim"),
        ({"solver": "evolutionary:is_measured=true"}, "is_measured=true is not done so"),
        ({"refine": 1}, "refine is not done so"),
    ],
)
def test_methods_that_are_not_streamed(
    folder: Path, tight: str, options: dict[str, Any], message: str
) -> None:
    """By name, before anything runs."""
    asked = task(load_folder(folder), memory=tight)

    with pytest.raises(InputError, match=message):
        mpq.search(asked, {"weight_bytes": "0.7x:w8g64"}, **options)


def test_verbs_that_are_not_streamed(folder: Path, tight: str) -> None:
    """They name those that are."""
    asked = task(load_folder(folder), memory=tight)

    for verb in (
        lambda: mpq.compare(asked, ["weight_bytes=1MB"]),
        lambda: mpq.Session.of(asked),
        lambda: mpq.profile(asked),
    ):
        with pytest.raises(InputError, match="only `search` and `frontier` are"):
            verb()


def test_blocks_by_name(folder: Path, tight: str) -> None:
    """A name that is none is refused with those that there are."""
    with pytest.raises(InputError, match="lists of the network: 'model.layers'"):
        found(task(load_folder(folder), memory=tight, blocks="model.blocks"))


@pytest.mark.parametrize("memory", ["8 apples", "0GiB", 0, -1, True, "-3GiB", ""])
def test_memory_that_is_no_size(memory: Any) -> None:
    """At once, with the units that there are."""
    with pytest.raises(InputError, match=r"memory is a size such as 8GiB"):
        mpq.Task(nn.Linear(2, 2), [torch.zeros(1, 2)], memory=memory)


def test_systems_without_pages_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A size is refused; without one nothing changes."""
    monkeypatch.setattr(streamed, "can_stream", lambda: False)

    assert mpq.Task(nn.Linear(2, 2), [torch.zeros(1, 2)]).streamed == ""
    with pytest.raises(InputError, match="this system does not"):
        _ = mpq.Task(nn.Linear(2, 2), [torch.zeros(1, 2)], memory="1GB").streamed


def test_the_command_line_measures_and_writes(
    folder: Path, run: Path, tight: str, tmp_path: Path
) -> None:
    """``evaluate``, ``quantize`` and ``export`` with ``--memory``."""
    from typer.testing import CliRunner

    pytest.importorskip("compressed_tensors")
    words = words_file(tmp_path)
    common = f"--model {folder} --memory {tight}"

    ended = [
        CliRunner().invoke(app, command.split())
        for command in (
            f"evaluate {run} {common} --data {words}:data",
            f"quantize {run} {common} --output {tmp_path / 'q.safetensors'}",
            f"export {run} {common} --data {words}:data --to compressed-tensors "
            f"--output {tmp_path / 'made'}",
        )
    ]

    assert [each.exit_code for each in ended] == [0, 0, 0], [each.output for each in ended]
    assert json.loads(ended[0].stdout)["quantized"]["kl_nats"] > 0
    assert (tmp_path / "q.safetensors").stat().st_size > 0
    assert "decoded one by one" in ended[2].output.replace("\n", " ")


def words_file(folder: Path) -> Path:
    """A file with a function that yields words."""
    path = folder / "words.py"
    path.write_text(
        "import torch\n"
        "def data():\n"
        "    generator = torch.Generator().manual_seed(1)\n"
        "    yield {'input_ids': torch.randint(512, (8, 12), generator=generator)}\n",
        encoding="utf-8",
    )
    return path


def test_the_command_line(folder: Path, tight: str, tmp_path: Path) -> None:
    """A folder as the network, and the sentence first."""
    from typer.testing import CliRunner

    command = (
        f"search --model {folder} --data {words_file(tmp_path)}:data --limit weight_bytes=2MB "
        f"--precisions w2g64,w8g64 --rounding nearest --memory {tight} "
        f"--output {tmp_path / 'run'}"
    )

    ended = CliRunner().invoke(app, command.split())

    assert ended.exit_code == 0, ended.output
    assert "it is streamed from its files" in " ".join(ended.output.split())
