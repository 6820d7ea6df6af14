"""Batches that do not fit into memory are cut in halves; the numbers are those of the halves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.errors import InputError
from mpq.network.examples import Calibration
from mpq.network.halving import halved
from mpq.network.network import Network
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer, quantized
from mpq.sensitivity import ESTIMATORS, Estimation
from mpq.sensitivity.in_memory import in_memory
from mpq.sensitivity.passes.second_moments import second_moments
from mpq.workflows.evaluate import Reference
from mpq.workflows.shards import estimate_shard

CANDIDATES = tuple(map(Precision.parse, ("w2a4", "w4a8", "w8a8d")))
WORDS = 16


class Tight(nn.Module):
    """Embedding, body and head, in a memory that holds so many examples."""

    room = 1000

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body = nn.Embedding(WORDS, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of every position."""
        x = torch.tanh(self.body(self.table(ids)))
        if len(ids) > self.room:  # when some layers have been read
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        found: Tensor = self.head(x)
        return found


def sequences(*sizes: int) -> list[Tensor]:
    """In batches of these sizes, the same ones in the same order for every way to cut them."""
    ids = torch.randint(WORDS, (sum(sizes), 5), generator=torch.Generator().manual_seed(1))
    return list(ids.split(list(sizes)))


def estimation(*sizes: int) -> Estimation:
    data = Calibration(sequences(*sizes))
    network = Network.of(Tight().eval(), data)
    whole = Calibration(sequences(6, 5))
    ranges = ActivationRanges.calibrate(network, whole, CANDIDATES)
    return Estimation(network, data, Quantizer(ranges), CANDIDATES)


@pytest.mark.parametrize(
    "name", ["sketch", "fisher", "auto", "measured", "pairwise", "layer-output", "hessian-trace"]
)
def test_an_estimate_is_that_of_the_smaller_batches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the pass that broke off is counted; the warning says what was halved."""
    estimator, on = ESTIMATORS.build(name), estimation(6, 5)
    expected = estimator.estimate(estimation(4, 2, 4, 1)).table.values
    monkeypatch.setattr(Tight, "room", 4)

    with pytest.warns(
        UserWarning, match=rf"estimate \({name}\) does not fit .* of 6 examples: goes on with 4 at"
    ):
        found = in_memory(estimator.name, on, estimator.estimate).table.values

    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
    assert expected.max() > 0


@pytest.mark.parametrize("guidance", [0.0, 0.5])
def test_second_moments_are_those_of_the_smaller_batches(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved twice; plain and guided."""
    on = estimation(6, 5)
    expected = second_moments(estimation(2, 2, 2, 2, 2, 1), guidance=guidance)
    monkeypatch.setattr(Tight, "room", 3)

    with pytest.warns(UserWarning, match="collecting second moments does not fit") as warned:
        found = second_moments(on, guidance=guidance)

    assert [str(w.message).split("goes on with ")[1] for w in warned] == ["4 at once", "2 at once"]
    assert found.values.keys() == expected.values.keys() == {"body", "head"}
    for layer in expected.values:
        torch.testing.assert_close(found.values[layer], expected.values[layer])


def test_a_measurement_is_that_of_the_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the original's answers were made of whole batches."""
    on, data = estimation(6, 5), Calibration(sequences(6, 5))
    reference = Reference(on.network.module, data)
    with quantized(on.network, dict.fromkeys(on.names, CANDIDATES[0]), on.quantizer):
        expected = reference.compare(on.network.module)
        monkeypatch.setattr(Tight, "room", 2)

        with pytest.warns(UserWarning, match="measuring does not fit") as warned:
            found = reference.compare(on.network.module)
        again = reference.compare(on.network.module)

    assert [str(w.message).split("of ")[1][:1] for w in warned] == ["6", "4"]
    assert found.divergence == pytest.approx(expected.divergence) == again.divergence
    assert found.by_example == pytest.approx(expected.by_example, rel=1e-5)
    assert expected.divergence > 0


def test_a_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the layers to the comparisons, with what batches of two give."""
    monkeypatch.setattr(Tight, "room", 2)

    def found(*sizes: int) -> mpq.SearchResult:
        task = mpq.Task(
            Tight().eval(), sequences(*sizes), sequences(*sizes), candidates=CANDIDATES,
            rounding="coordinate-descent",
        )  # fmt: skip
        return mpq.search(task, {"effective_bits": 5}, sensitivity="sketch")

    expected = found(2, 2, 2, 2)
    with pytest.warns(UserWarning, match="goes on with 2 at once") as warned:
        result = found(4, 4)

    said = {str(w.message).partition(" does not fit")[0] for w in warned}
    assert said == {
        "finding layers", "finding ranges of inputs", "collecting second moments",
        "the estimate (sketch)", "measuring the original",
    }  # fmt: skip
    assert result.problem.loss.values == pytest.approx(expected.problem.loss.values, rel=1e-3)
    assert result.assignment.precisions == expected.assignment.precisions


def test_shares_of_several_jobs_are_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they are cut into; the search goes on from both."""

    def task(cache: Path | None) -> mpq.Task:
        data = sequences(4, 4)
        return mpq.Task(
            Tight().eval(), data, data, candidates=CANDIDATES, rounding="nearest", cache=cache
        )

    expected = mpq.search(task(None), {"effective_bits": 5}, sensitivity="sketch")
    monkeypatch.setattr(Tight, "room", 2)

    def made_by_jobs() -> mpq.SearchResult:
        for share in ("1/2", "2/2"):
            estimate_shard(task(tmp_path), share, sensitivity="sketch")
        return mpq.search(task(tmp_path), {"effective_bits": 5}, sensitivity="sketch")

    with pytest.warns(UserWarning, match="goes on with 2 at once") as warned:
        result = made_by_jobs()

    said = [str(w.message).partition(" does not fit")[0] for w in warned]
    assert said.count("share 2/2 of the estimate (sketch)") == 1
    found, values = result.problem.loss.values, expected.problem.loss.values
    assert found == pytest.approx(values, rel=1e-3)


def test_a_journal_goes_on_with_the_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of pieces have names of their own: none is taken for that of a whole batch."""
    expected = ESTIMATORS.build("measured").estimate(estimation(4, 2, 4, 1)).table.values
    estimator, on = ESTIMATORS.build(f"measured:journal={tmp_path / 'rows'}"), estimation(6, 5)
    estimator.estimate(on)
    monkeypatch.setattr(Tight, "room", 4)
    (tmp_path / "rows").write_text("".join(_without_rows(tmp_path / "rows")), encoding="utf-8")

    with pytest.warns(UserWarning, match="goes on with 4"):
        found = in_memory(estimator.name, on, estimator.estimate).table.values

    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert "examples 4 to 6, layer body" in (tmp_path / "rows").read_text(encoding="utf-8")


def _without_rows(path: Path) -> Sequence[str]:
    """As if the run had been killed after its first row."""
    return path.read_text(encoding="utf-8").splitlines(keepends=True)[:2]


def test_a_single_example_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says what can be done."""
    on = estimation(2)
    monkeypatch.setattr(Tight, "room", 0)

    with (
        pytest.warns(UserWarning, match="goes on with 1"),
        pytest.raises(InputError, match="batches have one example each: give shorter"),
    ):
        in_memory("sketch", on, ESTIMATORS.build("sketch").estimate)


def test_rows_that_mix_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is one example there."""
    on, data = estimation(4), Calibration(sequences(4)).whole()
    monkeypatch.setattr(Tight, "room", 2)

    with pytest.raises(InputError, match="cannot be cut, as rows of a batch change each other's"):
        Reference(on.network.module, data)


def test_what_draws_for_whole_batches_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller batch draws other numbers."""
    on, data = estimation(4), Calibration(sequences(4))
    monkeypatch.setattr(Tight, "room", 2)

    with pytest.raises(InputError, match="cannot be cut, as the network draws for whole batches"):
        Reference(on.network.module, data, seed=0)


def test_other_errors_are_left_alone() -> None:
    """Nothing broader is caught than what torch raises where an accelerator's memory runs out."""

    def fail(_: Calibration) -> None:
        raise RuntimeError("some other error")

    with pytest.raises(RuntimeError, match="some other error"):
        halved("this", Calibration(sequences(4)), fail)


def test_rounds_of_refinement_and_comparisons_are_cut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the numbers of the smaller batches."""

    def task(*sizes: int) -> mpq.Task:
        data = sequences(*sizes)
        return mpq.Task(
            Tight().eval(), data, sequences(4), candidates=["w2", "w4", "w8"], rounding="nearest"
        )

    def refined(asked: mpq.Task) -> mpq.SearchResult:
        return mpq.search(asked, {"effective_bits": 9}, sensitivity="sketch", refine=1)

    expected = refined(task(4, 4, 4))
    monkeypatch.setattr(Tight, "room", 4)

    limit = {"weight_bytes": "1x:w4"}
    with pytest.warns(UserWarning, match="does not fit into memory"):
        found = refined(task(8, 4))
    with pytest.warns(UserWarning, match="does not fit into memory"):
        compared = mpq.compare(task(8, 4), limit, estimators=["sketch"], num_random=3)
    np.testing.assert_allclose(
        [x.predicted_loss for x in found.provenance.refinements],
        [x.predicted_loss for x in expected.provenance.refinements],
        rtol=1e-4,
    )
    assert found.assignment.precisions == expected.assignment.precisions
    assert compared.scores
