"""Where llama.cpp computes something else than the simulation, the first such layer is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpq.backends import shipping
from mpq.backends.gguf import Gguf, tracing
from mpq.backends.gguf.runtime import FILE, server_settings
from mpq.backends.shipping import ship
from mpq.backends.target import Shipped
from mpq.errors import ModelError
from mpq.network.examples import Batch, Calibration
from tests.backends.gguf.networks import ALL, assigned, examples, network

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")


def exported(
    folder: Path, tokenizer: str, model: Any, *precisions: str, data: Calibration | None = None
) -> None:
    """The network, as the target writes and runs it."""
    found, data = assigned(model, *precisions), data or examples()
    ship(Gguf(tokenizer), f"gguf:tokenizer={tokenizer}", found, folder, model, data)


def after_writing(
    monkeypatch: pytest.MonkeyPatch, tensor: str, change: Callable[[Any], object]
) -> None:
    """Changes a tensor of the file before it is loaded."""
    write = Gguf.write

    def changed(self: Gguf, shipped: Shipped, folder: Path) -> None:
        write(self, shipped, folder)
        reader = gguf.GGUFReader(folder / FILE, "r+")
        (found,) = (x for x in reader.tensors if x.name == tensor)
        change(found.data)
        reader.data.flush()

    monkeypatch.setattr(Gguf, "write", changed)


@pytest.mark.parametrize(
    ("kind", "tensor", "layer"),
    [
        ("llama", "blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm"),
        ("llama", "output_norm.weight", "model.norm"),
        ("qwen2", "blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj"),
        ("qwen2", "blk.1.attn_v.bias", "model.layers.1.self_attn.v_proj"),
        ("qwen3", "blk.1.attn_q_norm.weight", "model.layers.1.self_attn.q_norm"),
        ("gemma2", "blk.1.post_ffw_norm.weight", "model.layers.1.post_feedforward_layernorm"),
    ],
)
def test_the_first_layer_that_computes_something_else_is_named(
    kind: str,
    tensor: str,
    layer: str,
    tokenizer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Though ties have parted the two networks before it, in all types of weights."""
    if kind != "qwen3":  # one of them in a process of its own
        request.getfixturevalue("same_process")
    more = {"gemma2": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 4}}
    model = network(kind, **more.get(kind, {}))

    def larger(numbers: Any) -> None:
        numbers += np.linspace(-2, 3, numbers.size, dtype=np.float32)

    after_writing(monkeypatch, tensor, larger)

    with pytest.raises(ModelError, match=rf"decoded alike\. the first layer [a-z ]* is '{layer}',"):
        exported(tmp_path / "out", tokenizer, model, *ALL)

    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("is_tied", [False, True])
def test_layers_are_traced_in_our_order(
    is_tied: bool, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of queries and keys change places in the file; of padded prompts nothing is traced."""
    monkeypatch.setattr(shipping, "trace_fresh", lambda *_: pytest.fail("it was run again"))
    model = network("llama", tie_word_embeddings=is_tied)
    exported(tmp_path / "out", tokenizer, model, "w8g32")
    loaded: Any = Gguf(tokenizer).load(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7, 8, 9]])

    found = loaded.traced(Batch((ids,), {}))

    modules = dict(model.named_modules())
    layers = {x for x, m in modules.items() if getattr(m, "weight", None) is not None}
    assert {x.removeprefix("output:") for x in found if x.startswith("output:")} == layers
    assert {x.removeprefix("input:") for x in found if x.startswith("input:")} == layers - {
        "model.embed_tokens"
    }
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"):
        with torch.no_grad():
            expected = modules[name](found[f"input:{name}"])
        # Eight bits of weights and of inputs.
        assert (expected - found[f"output:{name}"]).abs().max() < 0.05 * expected.std()
    last = found["output:lm_head"][0, 0, -1].log_softmax(-1)
    torch.testing.assert_close(last, loaded.run(Batch((ids,), {}))[0], atol=1e-4, rtol=0)
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    assert loaded.traced(Batch((ids, mask), {})) == {}


@pytest.mark.usefixtures("same_process")
def test_another_library_is_not_read(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose settings are others than are known: outputs differ, and no layer is named."""
    after_writing(monkeypatch, "output_norm.weight", lambda numbers: np.negative(numbers, numbers))
    monkeypatch.setattr(tracing, "DEFAULTS", (*tracing.DEFAULTS, 7))

    with pytest.raises(ModelError, match=r"decoded alike\. Its layers could not be looked at;"):
        exported(tmp_path / "out", tokenizer, network("llama"), "w8g32")


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("is_left", [False, True])
def test_of_a_padded_prompt_the_layers_are_looked_at_without_its_padding(
    is_left: bool, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the simulation as in llama.cpp, whichever side it is on."""
    after_writing(monkeypatch, "output_norm.weight", lambda numbers: np.negative(numbers, numbers))
    (data,) = examples()
    mask = torch.ones_like(data.kwargs["input_ids"])
    mask[:, slice(3) if is_left else slice(5, None)] = 0
    padded = Calibration([{**data.kwargs, "attention_mask": mask}])

    with pytest.raises(ModelError, match="what it reads is 'model.norm',"):
        exported(tmp_path / "out", tokenizer, network("llama"), "w8g32", data=padded)


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("count", [1, 3])
def test_as_many_threads_compute_as_torch_has(
    count: int, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own four of a trace turn while they wait: on two processors that takes seconds."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("threads are counted in /proc")
    exported(tmp_path / "out", tokenizer, network("llama"), "w8g32")
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    before, seen = len(list(tasks.iterdir())), set[int]()

    tracing.run_traced(
        tmp_path / "out" / FILE, [5, 6], lambda *_: seen.add(len(list(tasks.iterdir())) - before)
    )

    assert max(seen) == count - 1
    settings = server_settings(tmp_path / "out" / FILE, 8)
    assert settings.cpuparams.n_threads == settings.cpuparams_batch.n_threads == count
