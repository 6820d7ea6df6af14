"""Text that a language model writes itself."""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mpq._support.progress import track
from mpq.errors import InputError, ModelError
from mpq.network.examples import Calibration
from mpq.network.modules import check_model, device_of, share_parameters
from mpq.network.outputs import position_logits
from mpq.network.synthetic._base import DataSource, check_positive, check_texts
from mpq.network.synthetic.tokens import as_input, call


@final
@dataclass(frozen=True)
class SelfGeneratedText(DataSource):
    r"""Sequences that the model continues from a random token.

    .. math:: t_1 \sim \mathrm{uniform}, \quad t_{i+1} = \arg\max f(t_{1..i}) \text{ for } i \le g,
        \quad t_{i+1} \sim \mathrm{softmax}(f(t_{1..i}) / T) \text{ after}

    The most likely token for the first few, so that a sequence makes sense, then drawn ones, so
    that sequences differ. First tokens are all different until the vocabulary is used up. Nothing
    ends a sequence: a model that writes an end of text goes on with the next one.

    Reference: Liu et al. (2023), LLM-QAT, arXiv:2305.17888, section 2.1. There the first 3 to 5
    tokens, with the random one, are not drawn, and the model may end a sequence.

    Args:
        length: Tokens per example.
        num_examples: How many sequences are written, over all batches.
        batch_size: Examples that are written together.
        num_greedy: ``g``: tokens after the first that are the most likely ones.
        temperature: ``T``; above 1 makes unlikely tokens more likely.
        seed: Seed of first tokens and draws.
    """

    name: ClassVar[str] = "self-generated"
    summary: ClassVar[str] = "LLM-QAT: text that the language model writes itself"

    length: int = 128
    num_examples: int = 64
    batch_size: int = 16
    num_greedy: int = 3
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(
            self.name,
            length=self.length,
            num_examples=self.num_examples,
            batch_size=self.batch_size,
            temperature=self.temperature,
        )
        check_texts(self.name, self.num_examples, self.length)
        if self.num_greedy < 0:
            raise InputError(f"{self.name} needs num_greedy of at least 0; got {self.num_greedy}")

    def calibration(self, model: nn.Module) -> Calibration:
        """See ``DataSource.calibration``.

        The model maps ids ``[N, T]`` to logits ``[N, T, V]``. Where it keeps keys and values
        (``use_cache`` and ``past_key_values``, as in Hugging Face), all sequences of a batch cost
        about one forward pass over them; else ``T / 2``.

        Raises:
            ModelError: If the model does not do that.
        """
        check_model(model)
        module = share_parameters(model)
        # One generator for all batches: a new one of the same seed would repeat its draws.
        generator = torch.Generator().manual_seed(self.seed)
        device = device_of(module)
        # Different first tokens, as the greedy ones after the same token are the same.
        starts = _first_tokens(_vocabulary(module, device), self.num_examples, generator)
        batches = starts.split(self.batch_size)
        # A new reader per batch, whose memory is of that batch's text.
        texts = [self._write(_Reader(module, device), s, generator) for s in track(batches, "text")]
        return Calibration([as_input(model, text) for text in texts])

    def _write(self, reader: "_Reader", starts: Tensor, generator: torch.Generator) -> Tensor:
        """Continues first tokens ``[N]`` to ``[N, length]``."""
        text = starts[:, None]
        for position in range(1, self.length):
            logits = reader.next_logits(text)  # [N, V]
            if position <= self.num_greedy:
                new = logits.argmax(dim=-1, keepdim=True)
            else:
                new = (logits / self.temperature).softmax(-1).multinomial(1, generator=generator)
            text = torch.cat([text, new], dim=1)
        return text


def _first_tokens(vocabulary: int, num_examples: int, generator: torch.Generator) -> Tensor:
    """``[N]``: every id once, in random order, before any comes again."""
    rounds = -(-num_examples // vocabulary)
    orders = [torch.randperm(vocabulary, generator=generator) for _ in range(rounds)]
    return torch.cat(orders)[:num_examples]


def _vocabulary(module: nn.Module, device: torch.device) -> int:
    """How many tokens the model chooses from."""
    # Two tokens, as with one the single row of a classifier would pass for a position.
    logits = position_logits(call(module, torch.zeros(1, 2, dtype=torch.long, device=device)))
    if logits.shape[1] != 2:
        raise ModelError(
            f"the model gives {logits.shape[1]} positions for 2 tokens; text is written by a "
            "language model, which gives the logits of the next token at every position"
        )
    return logits.shape[2]


class _Reader:
    """Reads a growing text, and only what is new of it where the model can remember."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module = module
        self._device = device
        options = inspect.signature(module.forward).parameters
        # Asked of the signature, as a module with other arguments would raise.
        self._can_remember = {"use_cache", "past_key_values"} <= set(options)
        self._memory: Any = None

    def next_logits(self, text: Tensor) -> Tensor:
        """``[N, V]`` float64, on the CPU, from ids ``[N, T]``."""
        # What is remembered must not be read again: it would stand in the text twice.
        unread = text if self._memory is None else text[:, -1:]
        remember: dict[str, Any] = {"use_cache": True, "past_key_values": self._memory}
        options = remember if self._can_remember else {}
        output = call(self._module, unread.to(self._device), **options)
        if self._can_remember:
            self._memory = getattr(output, "past_key_values", None)
        # On the CPU, where the generator is, so that all devices draw alike.
        return position_logits(output)[:, -1].double().cpu()
