"""What is promised of a file before it is written, beside the file; targets that do not say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import mpq
from mpq.backends import BACKENDS, Target, target_of
from mpq.backends.file_size import FileSize, SaysFileSize, file_size_of, promised
from mpq.backends.hugging_face import FolderTarget
from mpq.backends.safetensors_size import MOST_TENSORS
from mpq.backends.stored import check_size, predicted_bytes
from mpq.backends.target import Shipped
from mpq.errors import InputError, ModelError
from mpq.problem.assignment import Assignment
from mpq.quantization.precision import ORIGINAL
from tests.backends.llamas import in_turn, llama, mixtral

FOLDERS = ["compressed-tensors", "mlx", "torchao", "auto-round", "auto-round:method=gptq"]
SILENT = ["litert", "onnx-qdq", "openvino"]
SPELLINGS = [
    "fp32", "w2a32", "w3a32", "w4a32", "w5a32", "w7ta32", "w8a32", "w4g32a32", "w3zg32a32",
    "w8za32", "w8a8", "w8a8s", "w8a8sd", "w4a8d", "fp8", "wfp8a32", "wmxfp4a32", "wmxfp8a32",
    "wnvfp4a32", "w4g64a32", "w3g16a8",
]  # fmt: skip


@pytest.mark.parametrize("name", [*FOLDERS, "gguf"])
def test_two_layers_with_one_weight_are_refused_before_a_search(name: str) -> None:
    """A file has a weight for each, and the search would count one."""
    model = llama()
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    first.up_proj.weight = second.up_proj.weight

    with pytest.raises(ModelError, match=r"up_proj' and '.*1\.mlp\.up_proj' share a weight"):
        target_of(name).check_network(model)


def with_extra(name: str) -> Target:
    """A target whose packages are here, as far as writing needs them."""
    target = target_of(name)
    for package in target.packages:
        if package != "auto_round":  # which reads alone
            pytest.importorskip(package)
    return target


def as_written(target: Target, model: nn.Module, assignment: Assignment) -> tuple[Shipped, int]:
    """What was written, and the bytes of the files."""
    shipped = Shipped.of(model, replace(assignment, numerics=target.arithmetic))
    with TemporaryDirectory() as place:
        target.write(shipped, Path(place))
        found = target.file_bytes(Path(place))
        if isinstance(target, FolderTarget):  # whose header can be read
            assert found == predicted_bytes(target, shipped) + target.header_bytes(Path(place))
    return shipped, found


def promise(target: Target, shipped: Shipped) -> FileSize:
    """Of a target that makes one."""
    found = promised(target, shipped)
    assert found is not None
    return found


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The parameters alone: what is computed from the configuration stays."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


NETWORKS = st.fixed_dictionaries(
    {
        "num_hidden_layers": st.integers(1, 3),
        "tie_word_embeddings": st.booleans(),
        "intermediate_size": st.sampled_from([96, 160, 1024]),
        "attention_bias": st.booleans(),
    }
)


@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=12, deadline=None)
@given(
    options=NETWORKS,
    mix=st.lists(st.sampled_from(SPELLINGS), min_size=1, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example({"num_hidden_layers": 11, "tie_word_embeddings": False}, ["w4a32", "fp32"], torch.float32)
def test_a_file_of_safetensors_is_as_large_as_promised(
    name: str, options: dict[str, Any], mix: list[str], dtype: torch.dtype
) -> None:
    """Never larger; smaller by the digits of its offsets and what fills up the header at most."""
    model = cast(llama(**options), dtype)
    target = with_extra(name).fitted(model)
    assignment = in_turn(model, target, tuple(mix))
    if not any(layer.precision != ORIGINAL for layer in assignment.layers):
        return

    shipped, found = as_written(target, model, assignment)
    told = promise(target, shipped)

    assert found <= told.constant_bytes <= found + told.slack_bytes
    # At most ten digits here: the bound itself is no more than what it says of itself.
    num_tensors = MOST_TENSORS * len(assignment.layers) + len(model.state_dict())
    assert told.slack_bytes <= 7 + 2 * 9 * num_tensors


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("spelling", ["w4a32", "w8ta32", "w3g32a32", "fp32"])
def test_experts_in_one_parameter_are_promised_as_the_file_has_them(
    name: str, spelling: str
) -> None:
    """Under the checkpoint's names, several for each, or one entry for all where they stay."""
    model, target = mixtral(num_hidden_layers=2), with_extra(name)
    modules = dict(model.named_modules())
    mixed = in_turn(model, target, (spelling,))
    layers = tuple(
        replace(layer, precision=ORIGINAL)
        if target.why_not(layer, layer.precision, modules)
        else layer
        for layer in mixed.layers
    )

    shipped, found = as_written(target, model, replace(mixed, layers=layers))
    told = promise(target, shipped)

    quantized = {layer.name for layer in layers if layer.precision != ORIGINAL}
    has_experts = any("experts" in layer for layer in quantized)
    assert has_experts == (name == "compressed-tensors" and spelling != "fp32")
    assert found <= told.constant_bytes <= found + told.slack_bytes


def test_a_weight_that_lies_in_the_file_twice_is_promised_twice() -> None:
    """As the embedding it is left as it came, and as the head it is quantized: no tie holds."""
    model, target = llama(tie_word_embeddings=True), with_extra("compressed-tensors")
    assignment = in_turn(model, target, ("w4a32",))
    head = next(x for x in assignment.layers if x.name.endswith("q_proj")).precision
    layers = (
        replace(layer, precision=head) if layer.name == "lm_head" else layer
        for layer in assignment.layers
    )
    shipped = Shipped.of(model, replace(assignment, layers=tuple(layers)))

    with TemporaryDirectory() as place:
        target.write(shipped, Path(place))
        sizes = check_size(target, shipped, Path(place))

    assert sizes.promised is not None
    assert sizes.found <= sizes.promised <= sizes.found + promise(target, shipped).slack_bytes


def test_a_file_that_is_larger_than_promised_is_refused() -> None:
    """Whatever its writer adds: here a second file with weights."""
    model, target = llama(), with_extra("compressed-tensors")
    shipped = Shipped.of(model, in_turn(model, target, ("w4a32",)))

    with TemporaryDirectory() as place:
        target.write(shipped, Path(place))
        save_file({"more": torch.zeros(300)}, Path(place, "more.safetensors"))

        with pytest.raises(ModelError, match=r"the files have \d+ bytes where \d+ were promised"):
            check_size(target, shipped, Path(place))


@pytest.mark.parametrize("name", SILENT)
def test_a_target_whose_graph_is_in_the_file_does_not_say(name: str) -> None:
    """With what can be limited instead; its export then weighs the file as before."""
    model = nn.Sequential(nn.Linear(32, 8)).eval()

    with pytest.raises(InputError, match=f"the target {name} does not say .* limit weight_bytes"):
        file_size_of(target_of(name), model, model, ["0"])

    assert promised(target_of(name), Shipped.of(model, Assignment(()))) is None


def test_every_target_says_or_is_known_not_to() -> None:
    """A new one is added here, or to the targets above."""
    targets = [BACKENDS.build(n) for n in BACKENDS.names() if issubclass(BACKENDS.get(n), Target)]

    silent = [target.name for target in targets if not isinstance(target, SaysFileSize)]

    assert sorted(silent) == SILENT
    assert {x.partition(":")[0] for x in FOLDERS} | {"gguf", "c"} == {
        target.name for target in targets if isinstance(target, SaysFileSize)
    }


def small() -> tuple[nn.Module, list[torch.Tensor]]:
    """A network of two layers, and examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    return model, [torch.randn(64, 32)]


@pytest.mark.parametrize("asked", ["limit", "minimize", "frontier"])
@pytest.mark.parametrize(
    ("to", "why"),
    [(None, "file_bytes is the size of a deployment"), ("onnx-qdq", "onnx-qdq does not say how")],
)
def test_without_a_target_that_says_it_nothing_is_estimated(
    to: str | None, why: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is asked for."""
    if to is not None:
        with_extra(to)
    monkeypatch.setattr("mpq.workflows.search.estimated", lambda *_: pytest.fail("estimated"))
    task = mpq.Task(*small(), to=to)
    asks: dict[str, Callable[[], object]] = {
        "limit": lambda: mpq.search(task, {"file_bytes": "1MB"}),
        "minimize": lambda: mpq.search(task, objective=mpq.Objective("file_bytes", max_loss=1.0)),
        "frontier": lambda: mpq.frontier(task, "file_bytes"),
    }

    with pytest.raises(InputError, match=why):
        asks[asked]()


def test_c_promises_its_constants() -> None:
    """A sum: there is no header in flash."""
    model, data = small()

    result = mpq.search(
        mpq.Task(model, data, to="c"), {"file_bytes": "0.7x:w8a8"}, sensitivity="weight-error"
    )

    assert result.cost_table("file_bytes").values.tolist() == (
        result.cost_table("weight_bytes").values.tolist()
    )
    (budget,) = result.assignment.metadata.budgets
    assert budget.used == result.comparison("result").costs["weight_bytes"]
