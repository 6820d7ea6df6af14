"""An export to a target: written, run by its own runtime, compared, and only then there."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from mpq.backends.fresh import FreshRun, run_fresh
from mpq.backends.simulate import Simulate
from mpq.backends.target import Shipped, Target
from mpq.errors import InputError, ModelError, OutputError
from mpq.network.examples import Batch, Calibration
from mpq.network.modules import device_of, stored_tensors, weight_of
from mpq.network.outputs import scored_tensor
from mpq.network.weight_layout import layout_of
from mpq.problem.assignment import Assignment

NUM_EXAMPLES: Final = 32
"""Examples that are run in the target's runtime at least, where there are as many."""
HEADERS: Final = 65536
"""Bytes of names, shapes and paddings that a file may have beside its tensors."""
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
        spread: Standard deviation of the simulation's outputs.
        max_weight_difference: Largest difference of a weight as the tool's reader decodes it,
            relative to its layer's largest weight.
        kl_from_original_nats: Mean KL divergence of the runtime's outputs from the original
            network's; ``None`` where outputs are no probabilities.
        kl_of_simulation_nats: The same of the simulation.
        file_bytes: All files with weights.
        predicted_bytes: What ``weight_bytes`` says: without headers.
        examples_per_second: Of one batch, warm, on this machine.
        versions: Packages that took part.
        kinds: What the layers were loaded as, counted.
        was_searched_for: Whether the assignment's numerics were the target's already.
    """

    target: str
    fingerprint: str
    num_layers: int
    num_examples: int
    max_difference: float
    median_difference: float
    spread: float
    max_weight_difference: float
    kl_from_original_nats: float
    kl_of_simulation_nats: float
    file_bytes: int
    predicted_bytes: int
    examples_per_second: float
    versions: dict[str, str]
    kinds: dict[str, int]
    was_searched_for: bool

    def to_json(self) -> str:
        """JSON with these names as keys."""
        data = {"schema_version": EXPORT_SCHEMA, **asdict(self)}
        return json.dumps(data, indent=1) + "\n"

    @property
    def verdict(self) -> str:
        """For people."""
        return (
            f"{', '.join(f'{p} {v}' for p, v in self.versions.items())} here: "
            f"{self.num_layers} weights decoded, at most {self.max_weight_difference:.2g} apart; "
            f"outputs of {self.num_examples} examples at most {self.max_difference:.2g} from the "
            f"simulation (median {self.median_difference:.2g}, spread {self.spread:.2g}); "
            f"{self.file_bytes} bytes ({self.predicted_bytes} predicted), "
            f"{self.examples_per_second:.3g} examples a second"
        )


def ship(
    target: Target,
    spelled: str,
    assignment: Assignment,
    folder: Path,
    model: nn.Module,
    calibration: Any,
) -> ExportCheck:
    """Writes a folder, runs it with the target's runtime, and compares it with the simulation.

    The folder appears when all of that went well, with ``export.json`` in it.

    Args:
        target: What writes and loads it.
        spelled: The target as ``BACKENDS.build`` takes it.
        assignment: Its layers' precisions.
        folder: Where it goes: a folder that is not there, or empty.
        model: The network that the assignment was found for, in evaluation mode.
        calibration: Examples, as ``Calibration`` takes them; the first are run.

    Raises:
        PrecisionError: If the target cannot hold a layer's precision; names it.
        ModelError: If the network is none that the target knows, or what its runtime computes is
            not what the simulation computes; names the first layer that differs.
        MismatchError: If the assignment belongs to another network.
        MissingDependencyError: If a package is missing.
        OutputError: If something is at the folder already, or it cannot be written.
    """
    target.check(assignment.layers)
    _refuse_what_is_there(folder)
    was_searched_for = assignment.numerics == target.numerics
    assignment = replace(assignment, numerics=target.numerics)
    shipped = Shipped.of(model, assignment)
    batches = _few(Calibration.of(calibration), device_of(model))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".mpq-export-") as place:
            made, exchange = Path(place, "made"), Path(place, "exchange")
            made.mkdir()
            exchange.mkdir()
            target.write(shipped, made)
            ran = run_fresh(target, spelled, made, batches, exchange)
            check = _compared(target, spelled, shipped, batches, ran, made, was_searched_for)
            (made / "export.json").write_text(check.to_json(), encoding="utf-8")
            if folder.is_dir():
                folder.rmdir()  # empty, as was asked above
            shutil.move(made, folder)
    except OSError as error:
        raise OutputError(f"cannot write the folder {folder}: {error}") from error
    return check


def _refuse_what_is_there(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; name a folder that is not, or remove it")


def _few(data: Calibration, device: torch.device) -> list[Batch]:
    """The first batches, with ``NUM_EXAMPLES`` examples if there are as many."""
    found: list[Batch] = []
    for batch in data:
        found.append(batch.to(device))
        if sum(each.size for each in found) >= NUM_EXAMPLES:
            break
    if not found:
        raise InputError("an export runs examples, and there are none")
    return found


def _compared(
    target: Target,
    spelled: str,
    shipped: Shipped,
    batches: Sequence[Batch],
    ran: FreshRun,
    made: Path,
    was_searched_for: bool,
) -> ExportCheck:
    """Refuses what differs; else what is written down."""
    weights = _check_weights(target, shipped, ran)
    simulated = Simulate().quantize(shipped.model, shipped.assignment)
    originals = [_answer(shipped.model, batch) for batch in batches]
    expected = [_answer(simulated, batch) for batch in batches]
    for want, got in zip(expected, ran.outputs, strict=True):
        if want.shape != got.shape:
            raise ModelError(
                f"{target.name}: its runtime's outputs are {tuple(got.shape)}, the simulation's "
                f"{tuple(want.shape)}"
            )
    of_examples = torch.cat(
        [(a - b).abs().flatten(1).amax(1) for a, b in zip(expected, ran.outputs, strict=True)]
    )
    spread = float(torch.cat([x.flatten() for x in expected]).std()) or 1.0
    worst, median = float(of_examples.max()), float(of_examples.median())
    # A comparison with nan is false: what is not within is refused.
    if not (median if target.is_median else worst) <= target.tolerance * spread:
        raise ModelError(
            f"{target.name}: its runtime's outputs differ from the simulation's by {worst:.3g} "
            f"(median {median:.3g}; their standard deviation is {spread:.3g}), though all weights "
            f"are decoded alike: nothing was written"
        )
    file_bytes = sum(
        f.stat().st_size for f in made.rglob("*") if f.suffix in target.weight_suffixes
    )
    predicted = predicted_bytes(target, shipped)
    if file_bytes > predicted * 1.01 + HEADERS:
        raise ModelError(
            f"{target.name}: the files have {file_bytes} bytes where {predicted} were promised"
        )
    return ExportCheck(
        target=spelled,
        fingerprint=shipped.assignment.fingerprint,
        num_layers=len(shipped.quantized),
        num_examples=len(of_examples),
        max_difference=worst,
        median_difference=median,
        spread=spread,
        max_weight_difference=weights,
        kl_from_original_nats=_divergence(originals, ran.outputs),
        kl_of_simulation_nats=_divergence(originals, expected),
        file_bytes=file_bytes,
        predicted_bytes=predicted,
        examples_per_second=batches[0].size / ran.seconds,
        versions={"mpq": version("mpq"), **ran.versions},
        kinds=_counted(ran.kinds.values()),
        was_searched_for=was_searched_for,
    )


def _counted(values: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def _check_weights(target: Target, shipped: Shipped, ran: FreshRun) -> float:
    """Largest difference of the decoded weights; names the first layer that differs."""
    missing = {layer.name: layer for layer in shipped.quantized}
    decoded = dict.fromkeys(missing, 0.0)
    for name, found in ran.weights():
        layer = missing.pop(name, None)
        if layer is None:
            continue
        layer_module = shipped.module.get_submodule(name)
        rounded = shipped.quantizer.weight(name, layer_module, layer.precision.weight)
        expected = layout_of(layer_module).to_rows(rounded).float().cpu()
        same_shape = expected.shape == found.shape
        error = float((expected - found).abs().max()) if same_shape else float("nan")
        decoded[name] = error / (float(expected.abs().max()) or 1.0)
        if not decoded[name] <= WEIGHT_TOLERANCE:
            raise ModelError(
                f"{target.name}: the weight of layer {name!r} at {layer.precision} is decoded as "
                f"another one: {decoded[name]:.3g} of its largest number apart, "
                f"{tuple(found.shape)} for {tuple(expected.shape)}; nothing was written"
            )
    if missing:
        raise ModelError(
            f"{target.name}: its reader found no quantized weight of layer {next(iter(missing))!r} "
            f"({len(missing)} of {len(decoded)} layers); nothing was written"
        )
    return max(decoded.values(), default=0.0)


WEIGHT_TOLERANCE: Final = 1e-6
"""Float32's last digits, of a product of a scale and a code."""


def predicted_bytes(target: Target, shipped: Shipped) -> int:
    """Bytes of all tensors that the target stores, without headers."""
    weights = {id(weight_of(shipped.module.get_submodule(x.name))) for x in shipped.quantized}
    rest = {id(t): t for t in stored_tensors(shipped.module) if id(t) not in weights}
    # A parameter that several layers share is stored once.
    first = {
        id(weight_of(shipped.module.get_submodule(x.name))): x for x in reversed(shipped.quantized)
    }
    bits = sum(target.stored_bits(layer, layer.precision) for layer in first.values())
    return -(-bits // 8) + sum(target.constant_bytes(t) for t in rest.values())


@torch.no_grad()
def _answer(module: nn.Module, batch: Batch) -> Tensor:
    return scored_tensor(module(*batch.args, **batch.kwargs)).float().cpu()


def _divergence(originals: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Mean KL divergence per position, in nats, of outputs taken as logits."""
    pairs = list(zip(originals, outputs, strict=True))
    total = sum(
        float(torch.nn.functional.kl_div(
            b.double().log_softmax(-1), a.double().log_softmax(-1), log_target=True, reduction="sum"
        ))
        for a, b in pairs
    )  # fmt: skip
    return total / sum(a[..., 0].numel() for a, _ in pairs)
