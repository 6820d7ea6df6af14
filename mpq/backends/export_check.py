"""What is written down of an export: how its own runtime ran it, beside the simulation."""

import json
from dataclasses import asdict, dataclass, field
from typing import Final, final

EXPORT_SCHEMA: Final = 1


@final
@dataclass(frozen=True)
class ExportCheck:
    """``export.json``: how an exported folder computes, as its own runtime ran it here.

    Args:
        target: As ``mpq export --to`` takes it.
        fingerprint: The assignment's.
        num_layers: Layers whose weights were decoded by the tool's reader and compared.
        num_examples: Examples that were run in the runtime.
        max_difference: Largest difference of an output from the simulation.
        median_difference: Median over the examples of their largest differences.
        accepted_difference: What the largest one, or the median one where a runtime rounds while
            running, was held against.
        spread: Standard deviation of the simulation's outputs.
        max_weight_difference: Largest difference of a weight as the tool's reader decodes it,
            relative to its layer's largest weight.
        kl_from_original_nats: Mean KL divergence of the runtime's outputs, taken as logits, from
            the original network's.
        kl_of_simulation_nats: The same of the simulation.
        file_bytes: All files with weights.
        predicted_bytes: What ``weight_bytes`` says: without headers.
        promised_bytes: What ``file_bytes`` says, which the files never exceed; ``None`` where the
            target does not say.
        examples_per_second: Of one batch, warm, on this machine.
        tokens_per_second: The same in tokens that are read; ``None`` where inputs are no tokens.
        dtype: What the network's parameters are stored in. Everything above was computed in
            float32, also of a network in half precision, whose numbers are exact in it.
        versions: Packages that took part.
        kinds: What the layers were loaded as, counted.
        was_searched_for: Whether the assignment's numerics were the target's already.
        figures: What the target counts besides, with the units in the names.
        median_from_search: Median difference from the simulation that a search measures in, where
            the target's own one rounds more; else ``None``.
        kl_of_search_nats: KL divergence of that simulation.
        max_differences_otherwise: The same as ``max_difference`` of the same files under other
            settings, by what these are called; told and not judged.
        max_differences_of_others: Largest difference of every output besides the first one that is
            scored, by path.
        unscored: Those of them that the search did not look at.
        warnings: What could not be compared, as other settings that the runtime does not load.
        examples_are_batches: Whether rows of a batch change each other's outputs, so that every
            example is a batch.
        examples_are_held_out: Whether differences, divergences and speeds are those of held-out
            examples; else of calibration examples, which ranges and weights were fitted to.
    """

    target: str
    fingerprint: str
    num_layers: int
    num_examples: int
    max_difference: float
    median_difference: float
    accepted_difference: float
    spread: float
    max_weight_difference: float
    kl_from_original_nats: float
    kl_of_simulation_nats: float
    file_bytes: int
    predicted_bytes: int
    promised_bytes: int | None
    examples_per_second: float
    tokens_per_second: float | None
    dtype: str
    versions: dict[str, str]
    kinds: dict[str, int]
    was_searched_for: bool
    figures: dict[str, int] = field(default_factory=dict)
    median_from_search: float | None = None
    kl_of_search_nats: float | None = None
    max_differences_otherwise: dict[str, float] = field(default_factory=dict)
    max_differences_of_others: dict[str, float] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    examples_are_batches: bool = False
    examples_are_held_out: bool = False

    def to_json(self) -> str:
        """JSON with these names as keys."""
        data = {"schema_version": EXPORT_SCHEMA, **asdict(self)}
        return json.dumps(data, indent=1) + "\n"

    @property
    def verdict(self) -> str:
        """For people."""
        half = "" if self.dtype == "float32" else f" (stored in {self.dtype}, run in float32)"
        searched = self.median_from_search
        apart = "" if searched is None else f" and {searched:.2g} from what a search measures in"
        more = "".join(f", {name} {value}" for name, value in self.figures.items())
        otherwise = "".join(
            f"; {name}: at most {difference:.2g} from the simulation"
            for name, difference in self.max_differences_otherwise.items()
        )
        otherwise += "".join(
            f"; {path}{' (not scored by the search)' if path in self.unscored else ''}: "
            f"at most {difference:.2g} from the simulation"
            for path, difference in self.max_differences_of_others.items()
        )
        warned = "".join(f"; warning: {text}" for text in self.warnings)
        tokens = f" ({self.tokens_per_second:.3g} tokens)" if self.tokens_per_second else ""
        examples = "examples"
        if self.examples_are_batches:
            examples = "batches (whole: their rows change each other's outputs)"
        examples = f"{'held-out' if self.examples_are_held_out else 'calibration'} {examples}"
        return (
            f"{', '.join(f'{p} {v}' for p, v in self.versions.items())} here{half}: "
            f"{self.num_layers} weights decoded, at most {self.max_weight_difference:.2g} apart; "
            f"outputs of {self.num_examples} {examples} at most {self.max_difference:.2g} from the "
            f"simulation (median {self.median_difference:.2g}{apart}, "
            f"accepted {self.accepted_difference:.2g}, spread {self.spread:.2g}); "
            f"{self.file_bytes} bytes ({self._expected_bytes}), "
            f"{self.examples_per_second:.3g} examples{tokens} a second{more}{otherwise}{warned}"
        )

    @property
    def _expected_bytes(self) -> str:
        if self.promised_bytes is None:
            return f"{self.predicted_bytes} predicted"
        return f"at most {self.promised_bytes} promised, {self.predicted_bytes} of them in tensors"


@final
@dataclass(frozen=True)
class StreamedCheck:
    """``export.json`` of a network that was streamed: decoded weight by weight, and not run.

    Args:
        target: As in ``ExportCheck``, and so are all others but the last.
        fingerprint: See there.
        num_layers: See there.
        max_weight_difference: See there.
        file_bytes: See there.
        predicted_bytes: See there.
        promised_bytes: See there.
        dtype: See there.
        versions: See there.
        kinds: See there.
        was_searched_for: See there.
        streamed: Why nothing was run: a sentence.
    """

    target: str
    fingerprint: str
    num_layers: int
    max_weight_difference: float
    file_bytes: int
    predicted_bytes: int
    promised_bytes: int | None
    dtype: str
    versions: dict[str, str]
    kinds: dict[str, int]
    was_searched_for: bool
    streamed: str

    def to_json(self) -> str:
        """JSON with these names as keys."""
        return json.dumps({"schema_version": EXPORT_SCHEMA, **asdict(self)}, indent=1) + "\n"

    @property
    def verdict(self) -> str:
        """For people."""
        return (
            f"{', '.join(f'{p} {v}' for p, v in self.versions.items())} here: {self.num_layers} "
            f"weights decoded one by one, at most {self.max_weight_difference:.2g} apart; "
            f"{self.file_bytes} bytes; not run, as it would not fit into memory"
        )
