"""Forty classes of transformers through mpq; `make zoo` takes all of them."""

import pytest
import torch

from scripts.zoo import changed, look, state_of
from scripts.zoo_models import Entry, Sizes, build, entries, tiny

pytest.importorskip("transformers")

RIGHT = (
    "AlbertForMaskedLM",
    "BartForConditionalGeneration",
    "BeitForImageClassification",
    "BertForTokenClassification",
    "BlenderbotForConditionalGeneration",
    "BloomForCausalLM",
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
REFUSED = {
    "BertForQuestionAnswering": "neither a floating-point tensor nor has",
    "CLIPModel": "neither a floating-point tensor nor has",
}
"""Classes, and what mpq says of them."""


@pytest.fixture(scope="module")
def known() -> dict[str, Entry]:
    """All classes by name."""
    return {entry.name: entry for entry in entries()}


@pytest.mark.filterwarnings("ignore")  # other people's code warns as it likes
@pytest.mark.parametrize("name", [*RIGHT, *REFUSED])
def test_every_class_is_right_or_refused(name: str, known: dict[str, Entry]) -> None:
    """No other error, all numbers counted, the model as found, nothing changed by fp32."""
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
