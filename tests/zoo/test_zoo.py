"""Forty classes of transformers through mpq; `make zoo` takes all of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts.zoo import by_family, rows_so_far, write
from scripts.zoo_checks import changed, look, state_of
from scripts.zoo_configs import FIXED, Sizes, tiny
from scripts.zoo_inputs import batches_of
from scripts.zoo_models import Entry, build, entries

pytest.importorskip("transformers")

RIGHT = (
    "AlbertForMaskedLM",
    "BartForConditionalGeneration",
    "BeitForImageClassification",
    "BertForQuestionAnswering",
    "BertForTokenClassification",
    "BlenderbotForConditionalGeneration",
    "BloomForCausalLM",
    "CLIPModel",
    "CanineModel",
    "ConvNextForImageClassification",
    "DebertaV2ForMaskedLM",
    "Dinov2Model",
    "ElectraForSequenceClassification",
    "FNetForMaskedLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GemmaForCausalLM",
    "GptOssForCausalLM",
    "HubertForSequenceClassification",
    "LayoutLMv3Model",
    "LlamaForCausalLM",
    "LongformerModel",
    "MBartForConditionalGeneration",
    "MambaForCausalLM",
    "MixtralForCausalLM",
    "MiniMaxModel",
    "NystromformerForTokenClassification",
    "OPTForCausalLM",
    "PaliGemmaModel",
    "PegasusForConditionalGeneration",
    "Qwen3MoeForCausalLM",
    "ResNetForImageClassification",
    "RoFormerForMaskedLM",
    "RwkvForCausalLM",
    "SegformerForSemanticSegmentation",
    "Swinv2Model",
    "T5ForConditionalGeneration",
    "ViTForImageClassification",
    "WhisperForConditionalGeneration",
    "YosoForMaskedLM",
)
REFUSED = {"ViTMAEModel": "the same input gives another answer"}
"""Classes, and what mpq says of them."""


@pytest.fixture(scope="module")
def known() -> dict[str, Entry]:
    """All classes by name."""
    return {entry.name: entry for entry in entries()}


@pytest.mark.filterwarnings("ignore")  # other people's code warns as it likes
@pytest.mark.parametrize("name", [*RIGHT, *REFUSED])
def test_every_class_is_right_or_refused(
    name: str, known: dict[str, Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other error, all numbers counted, the model as found, nothing changed by fp32."""
    # Longformer fills its eight tokens up to a whole window, which has 512; Swin doubles its width
    # three times, and codes of layers as wide as that take ten seconds.
    monkeypatch.setitem(FIXED, "attention_window", 8)
    monkeypatch.setitem(FIXED, "embed_dim", 8)
    built = build(known[name])

    row = look(built, ["auto"])

    assert row["wrong"] == []
    assert row["status"] == ("sentence" if name in REFUSED else "right")
    assert REFUSED.get(name, "") in row.get("sentence", "")


def test_states_differ_where_anything_does() -> None:
    """A check that sees nothing would pass whatever mpq did to a model."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    before = state_of(model)

    assert changed(before, state_of(model)) == []
    model[0].register_forward_hook(lambda *_: None)
    model[0].weight.requires_grad_(False)
    model[1].train()
    torch.rand(1)
    assert changed(before, state_of(model)) == ["values", "modes", "hooks", "random state"]


def test_configurations_become_small_throughout() -> None:
    """Sub-configurations too; special ids stay apart from each other and inside the vocabulary."""
    given = {
        "vocab_size": 50_000,
        "num_hidden_layers": 40,
        "hidden_act": "gelu",
        "text_config": {"hidden_size": 4096, "image_token_id": 32_000, "video_token_id": 32_001},
    }

    found = tiny(given, Sizes())

    assert found == {
        "vocab_size": 128,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
        "text_config": {"hidden_size": 32, "image_token_id": 100, "video_token_id": 101},
    }


def test_what_models_need_but_configurations_leave_out_is_filled() -> None:
    """Only where it is asked for: ``None`` says "from other fields" to most of them."""
    given = {"head_dim": None, "n_routed_experts": None, "rope_parameters": None, "bos": None}

    assert tiny(given, Sizes()) == given
    found = tiny(given, Sizes(fills=True))
    assert (found["head_dim"], found["n_routed_experts"], found["bos"]) == (16, 4, None)
    assert sum(found["rope_parameters"]["mrope_section"]) == found["head_dim"] // 2


def test_divided_widths_still_fit_each_other() -> None:
    """Equal ones stay equal, at whatever depth of lists; heads and kernels are no widths."""
    given = {
        "hidden_size": 512,
        "upsample_groups": 512,
        "block_configs": [[[3, 16, 64, 1, False]], [[3, 64, 128, 2, True]]],
        "num_attention_heads": 32,
        "patch_kernel_size": [64, 64],
    }

    found = tiny(given, Sizes(is_narrow=False, divisor=8))

    assert found == {
        "hidden_size": 64,
        "upsample_groups": 64,
        "block_configs": [[[3, 16, 8, 1, False]], [[3, 8, 16, 2, True]]],
        "num_attention_heads": 32,
        "patch_kernel_size": [64, 64],
    }


def test_lists_by_layer_follow_the_number_of_layers() -> None:
    """Entries for layers, choices of layers, and fields of single layers; stages stay."""
    given = {
        "num_hidden_layers": 12,
        "heads_per_layer": [2.0] * 12,
        "vision_feature_layer": [9, -2],
        "per_layer_config": {"01": {"head_dim": 512}, "05": {"head_dim": 512}},
        "depths": [2, 2, 6, 2],
        "out_indices": [2, 4],
    }

    found = tiny(given, Sizes())

    assert found == {
        "num_hidden_layers": 2,
        "heads_per_layer": [2.0, 2.0],
        "vision_feature_layer": [1, -2],
        "per_layer_config": {"01": {"head_dim": 16}},
        "depths": [1, 1, 1, 1],
        "out_indices": [2, 4],
    }


class _Boxed(torch.nn.Module):
    """Says what it misses, as models of transformers do."""

    def forward(
        self, input_ids: torch.Tensor | None = None, bbox: torch.Tensor | None = None
    ) -> torch.Tensor:
        if bbox is None:
            raise ValueError("You have to specify bbox")
        assert input_ids is not None
        return bbox.float().sum(-1) + input_ids


def test_an_input_that_an_error_names_is_given() -> None:
    """Its name is in the signature, and the maker of such inputs knows it."""
    batches = batches_of(_Boxed(), SimpleNamespace())

    assert [sorted(batch) for batch in batches] == [["bbox", "input_ids"]] * 3
    assert batches[0]["bbox"].shape == (*batches[0]["input_ids"].shape, 4)


def test_every_type_comes_once_before_any_comes_twice() -> None:
    """With the head that it is known by, so that a sweep of an hour says most."""
    known = [Entry(name, name[0]) for name in ("AForNothing", "AForCausalLM", "BModel")]

    first = by_family(known)[:2]

    assert {entry.name for entry in first} == {"AForCausalLM", "BModel"}


def test_a_sweep_goes_on_from_its_file(tmp_path: Path) -> None:
    """Only from one of the same limit and versions; the file says what was not tried."""
    path, known = tmp_path / "zoo.json", [Entry("AModel", "a"), Entry("BModel", "b")]
    row = {"model": "AModel", "type": "a", "status": "right"}

    write(path, {"AModel": row}, known)

    assert rows_so_far(path, {"AModel", "BModel"}) == {"AModel": row}
    assert rows_so_far(tmp_path / "none.json", {"AModel"}) == {}
    written = json.loads(path.read_text())
    assert written["not_tried"] == ["BModel"]
    path.write_text(json.dumps({**written, "limit": "effective_bits=6"}))
    with pytest.raises(SystemExit, match="another limit"):
        rows_so_far(path, {"AModel"})
