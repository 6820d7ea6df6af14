"""llama.cpp, as the prebuilt wheel ``xllamacpp`` has it, running a file on the processor."""

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor

from mpq.backends.gguf.architecture import EMBEDDING, HEAD, Architecture
from mpq.backends.gguf.tracing import run_traced
from mpq.backends.layerwise import INPUT, OUTPUT
from mpq.errors import InputError, ModelError
from mpq.network.examples import Batch

FILE: Final = "model.gguf"
CHECK: Final = "tokenizer-check.json"
"""Texts, and the tokens that the original tokenizer cuts them into."""
LONGEST: Final = 4096
"""Tokens of a context here: the key-value cache is made for as many, in float32."""
PACKAGES: Final = ("gguf", "xllamacpp")


@final
@dataclass(frozen=True, eq=False)
class LlamaCpp:
    """See ``mpq.backends.runtime.Loaded``.

    Args:
        folder: With the file.
        weights: Layer name to ``[O, K]`` float32, as the package ``gguf`` decodes it.
        kinds: Layer name to type.
        vocabulary_size: ``V``.
        letter: A token that is a whole letter.
        context_length: Tokens that it may read at once.
        architecture: llama.cpp's, which knows the names of its tensors.
        heads: Of queries, and of keys.
    """

    folder: Path
    weights: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    vocabulary_size: int
    letter: int
    context_length: int
    architecture: Architecture
    heads: tuple[int, int]

    @property
    def versions(self) -> Mapping[str, str]:
        """See ``Loaded``."""
        return {name: version(name) for name in PACKAGES}

    @cached_property
    def server(self) -> Any:
        """llama.cpp's server."""
        import xllamacpp

        num_tokens = min(self.context_length, LONGEST)
        server = xllamacpp.Server(server_settings(self.folder / FILE, num_tokens))
        # One that is dropped before its loop has begun waits for it for ever: this goes through it.
        _ask(server, "completion", {"prompt": [self.letter], "n_predict": 1})
        return server

    def check_tokens(self) -> None:
        """Compares how llama.cpp and the original tokenizer cut the sample texts.

        Raises:
            ModelError: If they part.
        """
        stated = json.loads((self.folder / CHECK).read_text(encoding="utf-8"))
        for text, expected in stated.items():
            found = self._asked("tokenize", {"content": text, "add_special": False})["tokens"]
            if found != expected:
                raise ModelError(
                    f"gguf: llama.cpp cuts {text!r} into the tokens {found[:12]}, the original "
                    f"tokenizer into {expected[:12]}; nothing was written"
                )

    def _asked(self, what: str, question: Mapping[str, Any]) -> Any:
        return _ask(self.server, what, question)

    def run(self, batch: Batch) -> Tensor:
        """Log-probabilities ``[N, V]`` of the token after each prompt.

        Raises:
            InputError: If a prompt is longer than what is run here.
        """
        asked = prompts(batch)
        longest = max(map(len, asked))
        if longest >= min(self.context_length, LONGEST):
            raise InputError(
                f"gguf: a prompt of {longest} tokens; fewer than "
                f"{min(self.context_length, LONGEST)} are run: give shorter examples"
            )
        return torch.stack([self._next(prompt) for prompt in asked])

    def traced(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Traceable.traced``: of layers and norms; nothing of a prompt with padding."""
        (prompt,) = prompts(batch)
        if len(prompt) < batch.tensors[0].shape[1]:
            return {}
        found: dict[str, Tensor] = {}

        def told(operation: str, parameter: str, made: Tensor, read: Tensor | None) -> None:
            name = self.architecture.layer_name(parameter)
            if name == EMBEDDING:  # which may be the last layer, too
                name = "" if self.architecture.scales_embedding else EMBEDDING
                name = HEAD if operation == "MUL_MAT" else name
            # Another part of the graph looks up rows that are no tokens'.
            if not name or (operation == "GET_ROWS" and OUTPUT + name in found):
                return
            if read is not None:
                found[INPUT + name] = read
            found[OUTPUT + name] = self._as_here(parameter, made)

        run_traced(self.folder / FILE, prompt, told)
        return found

    def _as_here(self, parameter: str, made: Tensor) -> Tensor:
        """What a layer gives, with channels in our order."""
        order = self.architecture.row_order(parameter, made.shape[-1], *self.heads)
        return made if order is None else made[..., order.argsort()]

    def _next(self, prompt: list[int]) -> Tensor:
        size = self.vocabulary_size
        question = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": size,
            "cache_prompt": False,
            # Nothing is reported of a token that ends the text, or is a part of a letter: so it is
            # told what to say. What it reports are the logits before that.
            "logit_bias": [[self.letter, 1e6]],
        }
        answer = self._asked("completion", question)
        try:
            stated = answer["completion_probabilities"][0]["top_logprobs"]
            found = torch.full((size,), float("nan"))
            found[[each["id"] for each in stated]] = torch.tensor([x["logprob"] for x in stated])
        except (KeyError, IndexError, TypeError) as error:
            raise ModelError(f"gguf: llama.cpp answers {str(answer)[:200]}") from error
        return found


def server_settings(file: Path, num_tokens: int) -> Any:
    """``xllamacpp.CommonParams`` of the server: everything in float32 that can be."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers = 0
    params.n_ctx = num_tokens
    params.n_parallel = 1
    # Its threads turn while they wait for each other: with more of them than there are free
    # processors, milliseconds take seconds.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.cpuparams.poll = 0  # waits without turning, which takes the time of others
    params.warmup = params.fit_params = params.ui = False
    return params


def _ask(server: Any, what: str, question: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{server.listening_address}/{what}",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def prompts(batch: Batch) -> list[list[int]]:
    """The token ids of every example, without padding.

    Raises:
        InputError: If the batch has other inputs than ids and a mask.
    """
    inputs = dict(zip(("input_ids", "attention_mask"), batch.args, strict=False))
    inputs |= batch.kwargs
    ids, mask = inputs.pop("input_ids", None), inputs.pop("attention_mask", None)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2 or inputs:
        raise InputError(
            "gguf: llama.cpp is run with input_ids [N, P] and an attention_mask, and nothing else; "
            f"got {', '.join(inputs) or 'no input_ids'}"
        )
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return [row[keep].tolist() for row, keep in zip(ids, kept, strict=True)]


def last_positions(batch: Batch) -> Tensor:
    """``[N]``: where the last token of every example stands."""
    mask = batch.kwargs.get("attention_mask", batch.args[1] if len(batch.args) > 1 else None)
    ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    if mask is None:
        assert isinstance(ids, Tensor)
        return torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
    places = torch.arange(mask.shape[1], device=mask.device)
    found: Tensor = (places * mask.bool()).amax(dim=1)
    return found
