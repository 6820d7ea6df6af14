"""What vLLM needs: a list, from its documentation."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import mpq
from mpq.backends import file_backend
from mpq.backends.vllm import checklist, fused, serving
from mpq.cli.__main__ import app
from mpq.errors import InputError
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.precision import Precision

PARTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "query"]


def layers(**precisions: str) -> tuple[AssignedLayer, ...]:
    """Linear layers of one block."""
    return tuple(
        AssignedLayer(f"model.layers.0.attn.{name}", "linear", (64, 64), Precision.parse(spelled))
        for name, spelled in precisions.items()
    )


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c.experts.0", "c.experts.1"]),
                       st.sampled_from(PARTS)), unique=True)
)  # fmt: skip
def test_fused_layers_have_one_parent_and_one_role(pairs: list[tuple[str, str]]) -> None:
    """No layer is in two groups, no group has one layer; experts of one block are one group."""
    names = [f"{parent}.{part}" for parent, part in pairs]

    groups = fused(names)

    assert len([n for g in groups for n in g]) == len({n for g in groups for n in g})
    assert all(len(group) > 1 for group in groups)
    for group in groups:
        parents = {name.rpartition(".")[0] for name in group}
        assert len(parents) == 1 or all(".experts." in name for name in group)
    alone = set(names) - {n for g in groups for n in g}
    assert not {"a.q_proj", "a.k_proj"} <= alone
    assert not {"c.experts.0.up_proj", "c.experts.1.o_proj"} <= alone


def test_the_list_names_schemes_and_bits() -> None:
    """What is everywhere, what is in some releases, and what is nowhere."""
    found = layers(
        q_proj="w4g128a32", k_proj="w4g128a32", v_proj="w4g128a32", o_proj="w3a32",
        gate_proj="w8a8d", up_proj="w8a8d", down_proj="w8g32a8d", query="fp8",
    )  # fmt: skip

    told = "\n".join(checklist(found))

    assert "not run here" in told
    assert "[ok] fused layers share a scheme (q/k/v, gate/up, experts): 1 at w4g128a32" in told
    assert "[ok] w4g128a32, 3 layers: WNA16, 4 bits" in told
    assert "[look] w3a32, 1 layers: 3 bits: recent releases only" in told
    assert "[ok] w8a8d, 2 layers: W8A8, dynamic inputs" in told
    assert "[NO] w8g32a8d, 1 layers: int8 inputs need weights per channel" in told
    assert f"[look] {Precision.parse('fp8')}, 1 layers" in told
    apart = checklist(layers(gate_proj="w4a32", up_proj="w8a32"))
    assert any(line.startswith("[NO] fused layers") for line in apart)


def test_other_servers_and_targets_are_refused(tmp_path: Path) -> None:
    """By name, before anything is loaded."""
    found = Assignment(layers(q_proj="w4a32"))
    with pytest.raises(mpq.MpqError, match="sglang"):
        serving("sglang", file_backend("compressed-tensors"), found)
    with pytest.raises(InputError, match="and this is gguf"):
        serving("vllm", file_backend("gguf"), found)
    (tmp_path / "assignment.json").write_text(found.to_json())

    answer = CliRunner().invoke(
        app, ["export", str(tmp_path), "--to", "text", "--serve", "vllm", "--output", "x"]
    )

    assert answer.exit_code != 0
    assert "served by --to compressed-tensors" in answer.output
