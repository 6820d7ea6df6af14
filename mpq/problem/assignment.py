"""The answer: a precision for every layer, and the JSON that users take away."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self, final

from mpq._support import schema_versions
from mpq._support.files import remove_files, write_files
from mpq._support.json_object import parsed_json, quoted, read_text
from mpq._support.one_run import check_one_run
from mpq._support.schema import read_schema, validate
from mpq.errors import FileFormatError, InputError, PrecisionError
from mpq.network.kept_tokens import KEPT_NONE, KeptTokens
from mpq.network.layer import fingerprint, signature
from mpq.network.reparametrization import Reparametrization
from mpq.network.tuned_parameters import TunedParameters
from mpq.problem.companions import (
    Read,
    check_companions,
    companions,
    content_beside,
    reparametrization_of,
    tuned_of,
    weights_of,
)
from mpq.problem.consistency import check_consistent
from mpq.problem.metadata import Metadata
from mpq.problem.stored_formats import format_to_dict
from mpq.problem.stored_ranges import (
    RANGE_KEYS,
    check_range,
    check_steps,
    range_from_dict,
    range_to_dict,
    steps_from_dict,
    steps_to_dict,
    widen_ranges,
)
from mpq.problem.stored_weights import check_weights
from mpq.quantization.formats import NUMBER_FORMATS
from mpq.quantization.numerics import OWN, Numerics
from mpq.quantization.precision import Precision
from mpq.quantization.range_method import ActivationRange
from mpq.quantization.ranges import RANGE_METHODS
from mpq.quantization.step_cases import step_cases
from mpq.quantization.steps import StepClusters
from mpq.quantization.stored import StoredWeights


@final
@dataclass(frozen=True)
class AssignedLayer:
    """One layer with its precision.

    Args:
        name: The layer's, as in ``Layer``.
        kind: As in ``Layer``; with the shape, what tells one network from another.
        weight_shape: Shape of the weight as torch stores it.
        precision: Formats of the weight and of the input that were chosen for it.
        activation_range: Calibrated range of its input, for a static activation format.
        is_transposed: As in ``Layer``.
        computed: As in ``Layer``.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    precision: Precision
    activation_range: ActivationRange | None = None
    is_transposed: bool = False
    computed: str = ""

    @property
    def signature(self) -> str:
        """See ``Layer.signature``."""
        return signature(self.name, self.kind, self.weight_shape)

    def of_cluster(self, cluster: int) -> Self:
        """The same with bits and range of one cluster of steps, where it has some by cluster."""
        cases = step_cases(self.precision.activation, self.activation_range)
        if not cases:
            return self
        read, own = cases[cluster]
        return replace(
            self, precision=replace(self.precision, activation=read), activation_range=own
        )

    @property
    def has_steps(self) -> bool:
        """Whether its input has bits or a range for each cluster of steps."""
        return bool(step_cases(self.precision.activation, self.activation_range))


@final
@dataclass(frozen=True)
class Assignment:
    """A precision for every layer of one network.

    Args:
        layers: ``[L]`` in the network's order.
        ties: Layers that share a precision.
        folded: Convolution to the BatchNorm that is folded into it before quantizing.
        weight_range: How the weights' ranges are chosen, as ``RANGE_METHODS`` takes it.
        numerics: How scales are stored and tokens rounded where it is meant to run.
        metadata: How it was found, and what was predicted and measured of it.
        weights: Weights that were rounded with regard to data, which no ``weight_range`` gives
            again; ``None``: all are rounded to nearest.
        reparametrization: What is done to the network's parameters before anything else.
        tuned: Biases and norms that tuning changed after that.
        tokens_kept: Which tokens its key-value caches keep as they came.
        steps: Clusters of a diffusion's steps, for which inputs have ranges of their own.
    """

    layers: tuple[AssignedLayer, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    folded: Mapping[str, str] = field(default_factory=dict)
    weight_range: str = "mse"
    numerics: Numerics = OWN
    metadata: Metadata = field(default_factory=Metadata)
    weights: StoredWeights | None = None
    reparametrization: Reparametrization | None = None
    tuned: TunedParameters | None = None
    tokens_kept: KeptTokens = KEPT_NONE
    steps: StepClusters | None = None

    @property
    def precisions(self) -> dict[str, Precision]:
        """Layer name to precision."""
        return {layer.name: layer.precision for layer in self.layers}

    @property
    def rounds_inputs(self) -> bool:
        """Whether any layer's input is rounded."""
        return any(not layer.precision.activation.is_exact for layer in self.layers)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, kinds and weight shapes as ``Network.fingerprint``, folding and ties.

        A line ``fold convolution norm`` for each that is folded and a line ``tie a b`` for each tie
        follow the layers' lines.
        """
        folds = (f"fold {convolution} {norm}" for convolution, norm in self.folded.items())
        ties = (f"tie {' '.join(tie)}" for tie in self.ties)
        return fingerprint([*(layer.signature for layer in self.layers), *folds, *ties])

    def of_cluster(self, cluster: int) -> Self:
        """The network of one cluster of steps, with its ranges alone.

        Raises:
            InputError: If there is no such cluster.
        """
        if self.steps is None or not 0 <= cluster < self.steps.count:
            count = 1 if self.steps is None else self.steps.count
            raise InputError(
                f"there is no cluster {cluster} of steps: this assignment has {count}, numbered "
                "from 0 on"
            )
        layers = tuple(x.of_cluster(cluster) for x in self.layers)
        return replace(self, layers=layers, steps=None)

    def compared_by(self, metric: str | None, allow_randomness: int | None) -> Self:
        """The same for outputs that are compared otherwise; ``None``: as in the search."""
        known = self.metadata
        seed = known.allow_randomness if allow_randomness is None else allow_randomness
        changed = replace(known, metric=metric or known.metric, allow_randomness=seed)
        return replace(self, metadata=changed)

    def to_json(self) -> str:
        """JSON as ``mpq/problem/assignment.schema.json`` describes it, beside its other files."""
        layers = [_layer_to_dict(layer) for layer in self.layers]
        formats = {name: precision.weight for name, precision in self.precisions.items()}
        beside = {
            "weights": self.weights and self.weights.to_dict(formats),
            "reparametrization": self.reparametrization and self.reparametrization.to_dict(),
            "tuned": self.tuned and self.tuned.to_dict(),
        }
        data = {
            "schema_version": schema_versions.ASSIGNMENT,
            "fingerprint": self.fingerprint,
            "weight_range": self.weight_range,
            # Of few assignments: files without it are read by earlier versions as well.
            **({} if self.numerics == OWN else {"numerics": asdict(self.numerics)}),
            **({} if self.tokens_kept == KEPT_NONE else {"tokens_kept": asdict(self.tokens_kept)}),
            **({} if self.steps is None else {"steps": steps_to_dict(self.steps)}),
            **{name: part for name, part in beside.items() if part is not None},
            "folded_batch_norm": dict(self.folded),
            "ties": [list(tie) for tie in self.ties],
            "layers": layers,
            "metadata": self.metadata.to_dict(),
        }
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, read_weights: Read | None = None) -> Self:
        """Inverse of ``to_json``.

        Args:
            text: The JSON.
            read_weights: Gives the content of a file beside it that it names, if it names one.

        Raises:
            FileFormatError: If the text is no assignment, of a later schema version, its layers do
                not have the fingerprint it states, or files beside it are missing or others.
        """
        data = parsed_json(text)
        # Asked before the schema is: a later file would fail it with a message about some key.
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > schema_versions.ASSIGNMENT:
            raise FileFormatError(
                f"assignment of schema version {version}; this mpq reads version "
                f"{schema_versions.ASSIGNMENT}: update mpq"
            )
        if version == 1 and "record" in data:  # its name before version 2
            data["metadata"] = data.pop("record")
        if version in (1, 2):
            widen_ranges(data)
        validate(data, _schema(), "assignment")
        _check_range_method(data["weight_range"])
        layers = tuple(_layer_from_dict(layer) for layer in data["layers"])
        ties = tuple(tuple(tie) for tie in data["ties"])
        metadata = Metadata.from_dict(data["metadata"])
        numerics = Numerics(**data.get("numerics", {}))
        folded, ranges = data["folded_batch_norm"], data["weight_range"]
        weights = weights_of(data.get("weights"), read_weights)
        changes = reparametrization_of(data.get("reparametrization"), read_weights)
        tuned = tuned_of(data.get("tuned"), read_weights)
        kept = KeptTokens(**data.get("tokens_kept", {}))
        made = cls(
            layers, ties, folded, ranges, numerics, metadata, weights, changes, tuned, kept,
            steps_from_dict(data.get("steps")),
        )  # fmt: skip
        check_consistent([(x.name, x.precision) for x in layers], ties, folded)
        check_steps(
            made.steps, ((x.name, x.precision.activation, x.activation_range) for x in layers)
        )
        if weights is not None:
            shaped = {x.name: (x.precision, x.weight_shape) for x in layers}
            check_weights(weights, shaped, data["weights"]["formats"])
        # Whoever edits a name or a shape by hand gets a file that fits no network.
        of_layers = fingerprint(layer.signature for layer in layers)
        if data["fingerprint"] != (of_layers if version in (1, 2) else made.fingerprint):
            raise FileFormatError(
                "the layers, folding and ties do not have the fingerprint that the file states"
            )
        return made

    def save(self, folder: Path | str) -> list[Path]:
        """Writes ``assignment.json``, and beside it codes that data chose, transformations, tuning.

        Args:
            folder: Made if it does not exist; an earlier assignment there is replaced.

        Raises:
            OutputError: If it cannot be written to.
        """
        files, others = companions(self.weights, self.reparametrization, self.tuned)
        written = write_files(Path(folder), {"assignment.json": self.to_json().encode(), **files})
        remove_files(Path(folder), others)
        return written

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads ``assignment.json``.

        Args:
            path: The file, or the folder of a run that it is in.

        Raises:
            FileFormatError: If the file cannot be read, is no assignment, or lies beside the
                problem or the result of another run.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "assignment.json"
        text = read_text(path)
        try:
            found = cls.from_json(text, partial(content_beside, path))
            check_companions(found.weights, found.reparametrization, found.tuned, path)
            check_one_run(path.parent, [path.name, "problem.json", "result.json"])
            return found
        # ``from_json`` knows no path, and the user may have given several.
        except FileFormatError as error:
            raise FileFormatError(f"{path}: {error}") from error


def _layer_to_dict(layer: AssignedLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": layer.kind,
        "weight_shape": list(layer.weight_shape),
        "precision": str(layer.precision),
        # The same as the precision's short spelling, in full, for readers that do not have mpq.
        "weight": format_to_dict(layer.precision.weight),
        "activation": format_to_dict(layer.precision.activation)
        | range_to_dict(layer.activation_range),
        # Of few layers: files without it are read by earlier versions as well.
        **({"transposed": True} if layer.is_transposed else {}),
        **({"computed": layer.computed} if layer.computed else {}),
    }


def _layer_from_dict(data: Any) -> AssignedLayer:
    layer = f"layer {quoted(data['name'])}"
    try:
        precision = Precision.parse(data["precision"])
    except PrecisionError as error:
        raise FileFormatError(f"{layer}: {error}") from error
    known = {k: v for k, v in data["activation"].items() if k in RANGE_KEYS}
    stated = (data["weight"], {k: v for k, v in data["activation"].items() if k not in known})
    # Two statements of one thing: where they differ, nobody can tell which one was meant.
    if stated != (format_to_dict(precision.weight), format_to_dict(precision.activation)):
        raise FileFormatError(f"{layer}: its formats are not those of its precision {precision}")
    try:
        calibrated = range_from_dict(known)
        check_range(calibrated, precision.activation, data["kind"], data["weight_shape"])
    # A whole number may be too large for a float.
    except (InputError, OverflowError) as error:
        told = quoted(known["range"])
        raise FileFormatError(f"{layer}: its activation range {told}: {error}") from error
    shape = tuple(data["weight_shape"])
    is_transposed = data.get("transposed", False)
    computed = data.get("computed", "")
    return AssignedLayer(
        data["name"], data["kind"], shape, precision, calibrated, is_transposed, computed
    )


def _check_range_method(text: str) -> None:
    """Refuses a method that does not exist now, and not when the weights are rounded."""
    try:
        RANGE_METHODS.build(text)
    except InputError as error:
        raise FileFormatError(f"not a valid assignment: at weight_range: {error}") from error


@cache
def _schema() -> Any:
    # The schema's file cannot list formats, as other packages add some. Read once per process: the
    # files of a sweep are many.
    return read_schema("mpq.problem", "assignment.schema.json", number_format=NUMBER_FORMATS)
