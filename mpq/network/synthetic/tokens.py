"""Token ids: how a language model takes them, and random ones."""

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mpq.errors import InputError, ModelError
from mpq.network.arguments import input_of
from mpq.network.examples import Calibration
from mpq.network.modules import check_model, device_of, hooks, share_parameters
from mpq.network.synthetic._base import DataSource, batch_sizes, check_positive, check_texts


@final
@dataclass(frozen=True)
class RandomTokens(DataSource):
    """Independent, equally likely token ids.

    For comparison: real text has few frequent tokens and an order that the network predicts.

    Args:
        vocabulary: How many ids there are; 0: read from the model (``vocabulary_of``).
        length: Tokens per example.
        num_examples: How many sequences are drawn, over all batches.
        batch_size: Examples per batch.
        seed: Seed of the drawn ids.
    """

    name: ClassVar[str] = "random-tokens"
    summary: ClassVar[str] = "uniformly random token ids, for comparison"

    vocabulary: int = 0
    length: int = 128
    num_examples: int = 64
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(
            self.name,
            length=self.length,
            num_examples=self.num_examples,
            batch_size=self.batch_size,
        )
        check_texts(self.name, self.num_examples, self.length)
        if self.vocabulary < 0:
            raise InputError(f"{self.name} needs a vocabulary above 0; got {self.vocabulary}")

    def calibration(self, model: nn.Module) -> Calibration:
        """See ``DataSource.calibration``."""
        check_model(model)
        # On a copy, as it is hooked and run for that, and the user's model is left as found.
        count = self.vocabulary or vocabulary_of(share_parameters(model))
        generator = torch.Generator().manual_seed(self.seed)
        sizes = batch_sizes(self.num_examples, self.batch_size)
        draws = (torch.randint(count, (n, self.length), generator=generator) for n in sizes)
        return Calibration([as_input(model, ids) for ids in draws])


def as_input(model: nn.Module, ids: Tensor) -> Any:
    """Ids ``[N, T]`` as the model takes them: as ``input_ids`` where it has that name, or bare."""
    takes_name = "input_ids" in inspect.signature(model.forward).parameters
    return {"input_ids": ids} if takes_name else ids


def call(model: nn.Module, ids: Tensor, **options: Any) -> Any:
    """What the model returns for ids ``[N, T]``."""
    given = as_input(model, ids)
    with torch.no_grad():
        return model(**given, **options) if isinstance(given, dict) else model(given, **options)


def vocabulary_of(model: nn.Module) -> int:
    """How many ids a model knows: its ``config.vocab_size``, or rows of the table that it looks in.

    Raises:
        ModelError: If it has neither.
    """
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    # The configuration first, as it takes no forward pass.
    if isinstance(size, int):
        return size
    ids = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
    found: list[int] = []

    def look(table: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = input_of(args, kwargs)
        # Tables of positions are looked up in, too, but not for these ids.
        if read is not None and read.shape == ids.shape and torch.equal(read, ids):
            found.append(table.num_embeddings)

    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    with hooks([table.register_forward_pre_hook(look, with_kwargs=True) for table in tables]):
        call(model, ids)
    if not found:
        raise ModelError(
            "the model looks its ids up in no nn.Embedding and has no config.vocab_size; give "
            "the number of ids, as random-tokens:vocabulary=32000"
        )
    return found[0]
