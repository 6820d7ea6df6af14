"""Fixtures of exports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mpq.backends import shipping
from mpq.backends.fresh import FreshRun, run_batches, run_otherwise
from mpq.backends.runtime import Traceable
from mpq.backends.target import Target
from mpq.network.examples import Batch


def here(
    target: Target, spelled: str, folder: Path, batches: Sequence[Batch], exchange: Path
) -> FreshRun:
    """What ``run_fresh`` does, without another process."""
    loaded = target.load(folder)
    with torch.no_grad():
        outputs, more = run_batches(loaded, batches)
    file = exchange / "weights.safetensors"
    save_file({name: t.float().contiguous().clone() for name, t in loaded.weights.items()}, file)
    others = run_otherwise(target.load_otherwise(folder), batches)
    return FreshRun(tuple(outputs), 0.5, loaded.versions, loaded.kinds, file, others, tuple(more))


def seen(
    target: Target, spelled: str, folder: Path, batch: Batch, exchange: Path
) -> Mapping[str, torch.Tensor]:
    """What ``trace_fresh`` does, without another process."""
    loaded = target.load(folder)
    return loaded.traced(batch) if isinstance(loaded, Traceable) else {}


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are run here: another process takes half a minute to import all that it needs."""
    monkeypatch.setattr(shipping, "run_fresh", here)
    monkeypatch.setattr(shipping, "trace_fresh", seen)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a byte-level tokenizer of 300 tokens at most."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["Once upon a time there was a little girl, hello world"] * 3, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return str(folder)
