"""What an estimator looks at: a network, examples, a way of rounding, and the candidates."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Self, TypeAlias, TypeVar, final

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mpq._support.arrays import Array
from mpq._support.journal import Journal
from mpq._support.progress import track
from mpq._support.ranks import Ranks
from mpq._support.workers import TaskWorkers
from mpq.errors import ModelError
from mpq.network.examples import Batch, Calibration
from mpq.network.modules import check_no_autocast
from mpq.network.network import Network
from mpq.problem.cost_table import CostTable
from mpq.problem.split import Split
from mpq.quantization.channel_bits import OUTPUTS
from mpq.quantization.fingerprint import measurement_key
from mpq.quantization.precision import ORIGINAL, Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.tensor_format import TensorFormat
from mpq.sensitivity.passes.checkpoint import Division
from mpq.sensitivity.passes.units import OF_OUTPUTS, Units

Numbers = TypeVar("Numbers", Array, Tensor)
Own: TypeAlias = Callable[[Iterable[Batch]], Iterable[Batch]]
"""Of all batches those that are a process's to look at."""
ScoreDrop: TypeAlias = Callable[[Network, Quantizer, Mapping[str, Precision]], float]
"""How much worse a score is than the original's with these layers in these precisions."""


@final
@dataclass(frozen=True)
class Formats:
    """The formats that one kind of tensor, weights or inputs, takes among the candidates.

    Several candidates share a format (``w4a8`` and ``w4a16`` round weights alike), so that
    estimators work once per format and hand the numbers on to every candidate that has it.

    Args:
        formats: ``[F]`` the different formats, in the order in which candidates bring them in.
        columns: ``[B]`` index of every candidate's format.
    """

    formats: tuple[TensorFormat, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, by_candidate: Sequence[TensorFormat]) -> Self:
        """From the format of each of ``B`` candidates."""
        # By first appearance: a set's order varies from one process to the next.
        formats = tuple(dict.fromkeys(by_candidate))
        return cls(formats, tuple(map(formats.index, by_candidate)))

    @property
    def rounding(self) -> tuple[tuple[int, TensorFormat], ...]:
        """The formats that change numbers, each with its index."""
        return tuple((i, f) for i, f in enumerate(self.formats) if not f.is_exact)

    @property
    def is_rounding(self) -> bool:
        """Whether any format changes numbers."""
        return bool(self.rounding)

    def by_candidate(self, values: Numbers) -> Numbers:
        """``[..., B]`` from ``[..., F]``: every candidate gets the number of its format."""
        return values[..., list(self.columns)]


@final
@dataclass(frozen=True, eq=False)
class Estimation:
    """A question to an estimator: what does each of ``B`` candidates cost each of ``L`` layers?

    Args:
        network: The original network, with the ``L`` layers that are asked about.
        data: Calibration examples; targets are read only where an estimator says so.
        quantizer: How weights and inputs are quantized.
        candidates: The ``B`` precisions that every layer may take, in the order of columns.
        division: Which batches an estimator looks at, and where it keeps what it has so far;
            ``None``: all, and nowhere.
        ranks: The processes that are asked the same, and can share what is looked at.
        workers: Other processes, which can measure some cells each.
        split: Parts of weights whose prices are asked for (``Sensitivity.channels``).
        score_drop: Of the user's own score; ``None``: there is none.
        score_key: Tells the user's own score from others; empty: there is none.
        named_drop: The same of a score that is built in, by its name; ``None``: they are not known.

    Raises:
        ModelError: Within ``torch.autocast``.
    """

    network: Network
    data: Calibration
    quantizer: Quantizer
    candidates: Sequence[Precision]
    division: Division | None = None
    ranks: Ranks | None = None
    workers: TaskWorkers | None = None
    split: Split | None = None
    score_drop: ScoreDrop | None = None
    score_key: str = ""
    named_drop: Callable[[str], ScoreDrop] | None = None

    def __post_init__(self) -> None:
        check_no_autocast()

    @property
    def shape(self) -> tuple[int, int]:
        """``(L, B)``."""
        return len(self.network.layers), len(self.candidates)

    @property
    def names(self) -> tuple[str, ...]:
        """``[L]`` names of the layers."""
        return tuple(layer.name for layer in self.network.layers)

    @property
    def divides(self) -> bool:
        """Whether prices of parts are asked for."""
        return self.split is not None

    def units(self, name: str) -> Units:
        """Parts of a layer's weight that are priced by themselves.

        Where codes fit data, those of one row make good each other's errors: then these are output
        channels, of whatever parts weights have.
        """
        shape = self.network.layers[self.names.index(name)].weight_shape
        is_whole = self.split is None or self.split.axis == OUTPUTS or not prod(shape)
        if self.split is None or is_whole or self.quantizer.stored:
            return OF_OUTPUTS
        sizes = (f.group_size for f in self.weights.formats if f.has_channels)
        group = next((size for size in sizes if size is not None), None)
        return Units(self.split.axis, self.split.inputs_per_part(shape, group))

    @cached_property
    def weights(self) -> Formats:
        """The formats of weights."""
        return Formats.of([candidate.weight for candidate in self.candidates])

    @cached_property
    def inputs(self) -> Formats:
        """The formats of inputs."""
        return Formats.of([candidate.activation for candidate in self.candidates])

    @property
    def tried(self) -> tuple[int, ...]:
        """Columns of the candidates that change anything; the original precision costs 0."""
        return tuple(i for i, candidate in enumerate(self.candidates) if candidate != ORIGINAL)

    def batches(self, purpose: str, own: Own | None = None) -> Iterator[Batch]:
        """Batches on the network's device, with a progress bar that says what they are for.

        Args:
            purpose: For the progress bar.
            own: Which of the data's batches this process looks at; ``None``: all.
        """
        data = self.data
        batches = track(self.network.batches(data.uncut), purpose, data.uncut.num_batches)
        # Cut only now: which batches are whose does not depend on one's memory.
        for batch in batches if own is None else own(batches):
            yield from batch.pieces(data.at_once)

    def rounded_weight(self, name: str, tensor_format: TensorFormat) -> Tensor:
        """A layer's weight as a format holds it."""
        return self.quantizer.weight(name, self.network.layer_module(name), tensor_format)

    def rounded_input(self, name: str, x: Tensor, tensor_format: TensorFormat) -> Tensor:
        """What a layer reads, as a format holds it."""
        return self.quantizer.activation(name, self.network.layer_module(name), x, tensor_format)

    def table(
        self,
        values: npt.NDArray[np.floating],
        name: str,
        unit: str = "",
        scores: Mapping[str, Array] | None = None,
    ) -> CostTable:
        """The estimate as a table.

        Args:
            values: ``[L, B]`` loss of every layer at every candidate, in ``unit``.
            name: Name of the estimator, which the table has too.
            unit: Unit of the values; empty: that of the network's metric.
            scores: ``[L]`` each, see ``CostTable``; ``None``: none are known.

        Raises:
            ModelError: If a value is not finite.
        """
        # A CostTable takes nan for a precision that cannot run; an estimate that is nan is an
        # error.
        if not np.isfinite(values).all():
            layer, column = (int(i[0]) for i in np.nonzero(~np.isfinite(values)))
            raise ModelError(
                f"{name}: layer {self.names[layer]!r} at {self.candidates[column]} costs "
                f"{values[layer, column]}; gradients or outputs of the network overflow there"
            )
        unit = unit or self.network.metric.unit
        found = np.asarray(values, dtype=np.float64)
        ranked = {what: tuple(x.tolist()) for what, x in (scores or {}).items()}
        return CostTable(name, unit, self.names, tuple(self.candidates), found, scores=ranked)

    def journal(self, path: str, options: dict[str, str]) -> Journal | None:
        """The file in which measurements are kept, so that the same question resumes there.

        Args:
            path: File that is made, or resumed; empty: no journal.
            options: What else the measurements depend on: the estimator's name and options.

        Raises:
            InputError: If the file is of another measurement.
        """
        if not path:
            return None
        # Whatever changes a row is in the key, so that rows of another question are never mixed in.
        key = measurement_key(self.network, self.data, self.quantizer, self.candidates)
        return Journal(path, {**options, **key})
