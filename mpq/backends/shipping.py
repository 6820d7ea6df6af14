"""An export to a target: written, run by its own runtime, compared, and only then there."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

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
EXPORT_SCHEMA: Final = 1
LAST_DIGITS: Final = 1e-6
"""Relative difference of sums that are added up in another order."""
WEIGHT_TOLERANCE: Final = 1e-6
"""Float32's last digits, of a product of a scale and a code."""
TIES: Final = 2.0
"""How many times as far as the simulation moves by ties a runtime may be from it."""


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
        examples_per_second: Of one batch, warm, on this machine.
        tokens_per_second: The same in tokens that are read; ``None`` where inputs are no tokens.
        versions: Packages that took part.
        kinds: What the layers were loaded as, counted.
        was_searched_for: Whether the assignment's numerics were the target's already.
        max_differences_otherwise: The same as ``max_difference`` of the same files under other
            settings, by what these are called; told and not judged.
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
    examples_per_second: float
    tokens_per_second: float | None
    versions: dict[str, str]
    kinds: dict[str, int]
    was_searched_for: bool
    max_differences_otherwise: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON with these names as keys."""
        data = {"schema_version": EXPORT_SCHEMA, **asdict(self)}
        return json.dumps(data, indent=1) + "\n"

    @property
    def verdict(self) -> str:
        """For people."""
        tokens = f" ({self.tokens_per_second:.3g} tokens)" if self.tokens_per_second else ""
        return (
            f"{', '.join(f'{p} {v}' for p, v in self.versions.items())} here: "
            f"{self.num_layers} weights decoded, at most {self.max_weight_difference:.2g} apart; "
            f"outputs of {self.num_examples} examples at most {self.max_difference:.2g} from the "
            f"simulation (median {self.median_difference:.2g}, "
            f"accepted {self.accepted_difference:.2g}, spread {self.spread:.2g}); "
            f"{self.file_bytes} bytes ({self.predicted_bytes} predicted), "
            f"{self.examples_per_second:.3g} examples{tokens} a second"
            + "".join(
                f"; {name}: at most {difference:.2g} from the simulation"
                for name, difference in self.max_differences_otherwise.items()
            )
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
    target.check(assignment.layers, dict(model.named_modules(remove_duplicate=False)))
    _refuse_what_is_there(folder)
    was_searched_for = assignment.numerics == target.numerics
    assignment = replace(assignment, numerics=target.numerics)
    batches = _few(Calibration.of(calibration), device_of(model))
    shipped = Shipped.of(model, assignment, batches)
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
    target.adapt(simulated)
    originals = [_answer(target, shipped.model, batch) for batch in batches]
    expected = [_answer(target, simulated, batch) for batch in batches]
    differences = _differences(target, expected, ran.outputs)
    spread = float(torch.cat([x.flatten() for x in expected]).std()) or 1.0
    accepted = _accepted(
        target, shipped.assignment, differences, spread, simulated, batches, expected
    )
    file_bytes, predicted = _check_size(target, shipped, made)
    return ExportCheck(
        target=spelled,
        fingerprint=shipped.assignment.fingerprint,
        num_layers=len(shipped.quantized),
        num_examples=len(differences),
        max_difference=float(differences.max()),
        median_difference=float(differences.median()),
        accepted_difference=accepted,
        spread=spread,
        max_weight_difference=weights,
        kl_from_original_nats=_divergence(originals, ran.outputs),
        kl_of_simulation_nats=_divergence(originals, expected),
        file_bytes=file_bytes,
        predicted_bytes=predicted,
        examples_per_second=batches[0].size / ran.seconds,
        tokens_per_second=_num_tokens(batches[0]) / ran.seconds or None,
        versions={"mpq": version("mpq"), **ran.versions},
        kinds=_counted(ran.kinds.values()),
        was_searched_for=was_searched_for,
        max_differences_otherwise={
            name: float(_differences(target, expected, outputs).max())
            for name, outputs in ran.others.items()
        },
    )


def _differences(target: Target, expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """``[N]`` largest difference of each example's outputs."""
    for want, got in zip(expected, outputs, strict=True):
        if want.shape != got.shape:
            raise ModelError(
                f"{target.name}: its runtime's outputs are {tuple(got.shape)}, the simulation's "
                f"{tuple(want.shape)}"
            )
    pairs = zip(expected, outputs, strict=True)
    return torch.cat([(a - b).abs().flatten(1).amax(1) for a, b in pairs])


def _accepted(
    target: Target,
    assignment: Assignment,
    differences: Tensor,
    spread: float,
    simulated: nn.Module,
    batches: Sequence[Batch],
    expected: Sequence[Tensor],
) -> float:
    """How far outputs may be apart; refuses those that are further."""
    worst, median = float(differences.max()), float(differences.median())
    accepted = target.tolerance * spread
    is_median = target.has_ties(assignment)
    if is_median and not median <= accepted:
        accepted = max(accepted, TIES * _moved_by_ties(target, simulated, batches, expected))
    # A comparison with nan is false: what is not within is refused.
    if (median if is_median else worst) <= accepted:
        return accepted
    raise ModelError(
        f"{target.name}: its runtime's outputs differ from the simulation's by {worst:.3g} "
        f"(median {median:.3g}, accepted {accepted:.3g}; their standard deviation is "
        f"{spread:.3g}), though all weights are decoded alike: nothing was written"
    )


def _check_size(target: Target, shipped: Shipped, made: Path) -> tuple[int, int]:
    """Bytes of the files and of the tensors that were promised; refuses files that are larger."""
    files = (file for file in made.rglob("*") if file.suffix in target.weight_suffixes)
    found, predicted = sum(file.stat().st_size for file in files), predicted_bytes(target, shipped)
    if found > predicted * 1.01 + target.header_bytes(made):
        raise ModelError(
            f"{target.name}: the files have {found} bytes where {predicted} were promised; nothing "
            "was written"
        )
    return found, predicted


def _num_tokens(batch: Batch) -> int:
    """Ids in a batch; 0 where its inputs are numbers."""
    first = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    is_ids = isinstance(first, Tensor) and not first.is_floating_point() and first.ndim == 2
    return first.numel() if is_ids else 0


@torch.no_grad()
def _moved_by_ties(
    target: Target, simulated: nn.Module, batches: Sequence[Batch], expected: Sequence[Tensor]
) -> float:
    """Median over the examples of how far the simulation itself moves by float32's last digits.

    Inputs that are rounded while running may fall to either side of a tie. In a network with many
    layers some of every example do, in the simulation as in the runtime, which adds up in another
    order: the two differ as the simulation differs from itself with norms and biases a hair off.
    """
    draws = torch.Generator().manual_seed(0)
    moved = {
        name: p * (1 + LAST_DIGITS * torch.randn(p.shape, generator=draws).to(p))
        for name, p in simulated.named_parameters()
        if p.ndim == 1
    }
    found = []
    for batch, want in zip(batches, expected, strict=True):
        outputs = functional_call(simulated, moved, batch.args, dict(batch.kwargs))
        got = target.compared(scored_tensor(outputs).float(), batch).cpu()
        found.append((want - got).abs().flatten(1).amax(1))
    return float(torch.cat(found).median())


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
def _answer(target: Target, module: nn.Module, batch: Batch) -> Tensor:
    outputs = scored_tensor(module(*batch.args, **batch.kwargs)).float()
    return target.compared(outputs, batch).cpu()


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
