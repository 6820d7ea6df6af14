"""Networks whose forward draws, with the generators fixed in every pass."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.network.network import Network
from mpq.sensitivity.passes.prefix import reusing

SEED = 3


class Dropping(nn.Module):
    """Drops units in evaluation mode too, by the generators of torch, numpy and Python."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = F.dropout(torch.relu(self.a(x)), 0.2)
        x = x * torch.from_numpy(np.random.rand(32) > 0.1).float() * (1 + 0.1 * random.random())
        found: Tensor = self.c(F.dropout(torch.relu(self.b(x)), 0.2))
        return found


def make_net() -> nn.Module:
    """For the command line."""
    return Dropping().eval()


def examples() -> list[Tensor]:
    """Eight batches of 32 rows."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(8)]


def task(seed: int | None = SEED) -> mpq.Task:
    """Six batches calibrate, two are held out."""
    return mpq.Task(
        make_net(), examples()[:6], examples()[6:], candidates=["w4", "w8"], allow_randomness=seed
    )


def linear(model: nn.Module, name: str) -> nn.Linear:
    """A layer."""
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def by_hand(layer: str, weight: Tensor, batches: list[Tensor]) -> float:
    """Mean divergence with one weight replaced; all generators are seeded before each pass."""
    model, total = make_net(), 0.0
    original = linear(model, layer).weight
    for x in batches:
        answers = []
        for values in (original, nn.Parameter(weight)):
            linear(model, layer).weight = values
            torch.manual_seed(SEED)
            np.random.seed(SEED)
            random.seed(SEED)
            with torch.no_grad():
                answers.append(model(x).double().log_softmax(dim=-1))
        total += float((answers[0].exp() * (answers[0] - answers[1])).sum())
    return total / sum(map(len, batches))


def test_measured_equals_a_loop_that_seeds_before_each_pass() -> None:
    """No call is skipped that would have drawn, and no batch is made larger."""
    measured = mpq.search(task(), {"effective_bits": 6}, sensitivity="measured")
    table = measured.problem.loss

    for row, layer in enumerate(table.layers):
        for column, precision in enumerate(table.precisions):
            found = mpq.search(
                mpq.Task(
                    make_net(), examples(), candidates=["fp32", str(precision)],
                    rules=mpq.Rules(fix={"*": "fp32", layer: str(precision)}),
                    allow_randomness=SEED,
                ),
                {"effective_bits": 32},
            )  # fmt: skip
            weight = linear(mpq.quantize(make_net(), found.assignment), layer).weight
            expected = by_hand(layer, weight.detach(), examples()[:6])
            assert table.values[row, column] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_gradients_agree_with_measuring() -> None:
    """Within what the sketch is off by on a network that draws nothing."""
    sketch = mpq.search(task(), {"effective_bits": 6}, sensitivity="sketch:num_probes=16")
    measured = mpq.search(task(), {"effective_bits": 6}, sensitivity="measured")

    ratio = sketch.problem.loss.values / measured.problem.loss.values
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    assert sketch.spot_check is not None
    assert not any(cell.is_off for cell in sketch.spot_check.cells)


def test_what_is_measured_is_the_quantized_network_with_the_same_draws(tmp_path: Path) -> None:
    """``evaluate`` reads the seed from the assignment and finds the number of the search."""
    found = mpq.search(task(), {"effective_bits": 6})
    found.assignment.save(tmp_path)
    loaded = mpq.Assignment.load(tmp_path)

    again = mpq.evaluate(make_net(), loaded, examples()[6:])

    assert loaded.metadata.allow_randomness == SEED
    assert found.provenance.allow_randomness == SEED
    assert again["quantized"].divergence == pytest.approx(found.measured.divergence, rel=1e-6)


def test_another_seed_draws_other_numbers_and_none_moves_the_global_state() -> None:
    """The generators go on where they were."""
    first, second = task(), task(SEED + 1)  # making a network draws
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()

    one = mpq.search(first, {"effective_bits": 6})
    other = mpq.search(second, {"effective_bits": 6})

    assert one.measured.divergence != other.measured.divergence
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())
    assert before[2] == random.getstate()


def test_generators_go_on_between_passes_and_after_an_error() -> None:
    """What an estimator draws itself is not the same in every pass."""
    network = Network.of(make_net(), examples(), allow_randomness=SEED)
    torch.manual_seed(7)
    expected = [torch.rand(1), torch.rand(1)]
    torch.manual_seed(7)

    found = [torch.rand(1)]
    network.module(examples()[0])
    with pytest.raises(RuntimeError, match="shapes"):
        network.module(torch.ones(2, 3))
    found.append(torch.rand(1))

    assert found == expected


def test_resumed_passes_draw_as_whole_ones() -> None:
    """Recorded or not, a changed layer gives what the whole network gives."""
    network = Network.of(make_net(), examples(), allow_randomness=SEED)
    batch = next(iter(network.batches(mpq.Calibration.of(examples()))))
    with reusing(network) as reuse, torch.no_grad():
        recording = reuse.record(batch)
        linear(network.module, "c").weight.mul_(2)
        resumed = reuse.outputs(recording, "c")

    assert torch.equal(resumed, network.outputs(batch))
    assert not torch.equal(resumed, recording.outputs)


@pytest.mark.parametrize("seed", [-1, True, 2**63])
def test_only_a_seed_is_taken(seed: int) -> None:
    """Before anything runs."""
    with pytest.raises(mpq.errors.InputError, match="allow_randomness is a seed"):
        task(seed)


@pytest.mark.parametrize("command", ["search", "frontier", "compare"])
def test_the_command_line_takes_it(command: str, tmp_path: Path) -> None:
    """Refused without, naming the option; found with it."""
    here = Path(sys.modules[__name__].__file__ or "")
    given = [
        command, "--model", f"{here}:make_net", "--data", f"{here}:examples", "--precisions",
        "w3,w4,w5,w6,w7,w8", "--limit", "effective_bits=6", "--output", str(tmp_path),
    ]  # fmt: skip
    given += ["--estimator", "sketch", "--random", "3"] if command == "compare" else []

    refused = CliRunner().invoke(app, given)
    found = CliRunner().invoke(app, [*given, "--allow-randomness", str(SEED)])

    assert refused.exit_code == 2
    assert "--allow-randomness" in refused.output
    assert found.exit_code == 0, found.output
    if command == "search":
        written = json.loads((tmp_path / "assignment.json").read_text())
        assert written["metadata"]["allow_randomness"] == SEED
