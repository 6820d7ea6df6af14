"""The answer in the words of a colleague."""

from collections.abc import Iterator, Sequence
from math import sqrt

from mpq.report.amount import amount
from mpq.report.measurement import ComparisonRow, Measurement
from mpq.report.page.facts import NetworkFacts
from mpq.report.page.numbers import plain, share, times
from mpq.workflows.searched import Searched


def said(result: Searched, networks: Sequence[NetworkFacts]) -> Iterator[str]:
    """What was found, what it uses, what it costs in accuracy."""
    rows = {row.label: row for row in result.comparisons}
    if "result" in rows:
        yield from _against_uniform(rows["result"], networks)
    used = [
        f"{amount(b.used(result.columns), b.unit)} of {amount(b.limit, b.unit)} "
        f"({b.resource.replace('_', ' ')})"
        for b in result.problem.budgets
    ]
    if used:
        yield f"It uses {'; '.join(used)}."
    if "result" in rows and "original" in rows:
        answer, original = rows["result"].measured, rows["original"].measured
        yield from _accuracy(answer, original)
        yield from _score(result.assignment.metadata.score or "", answer, original)
    yield from _tuned(result)


def _tuned(result: Searched) -> Iterator[str]:
    """Whether it is another answer than that of the search which it was tuned from."""
    tuning = result.provenance.tuning
    if tuning is None:
        return
    if tuning.is_kept:
        yield f"It was tuned ({tuning.what})."
    else:
        yield f"Tuning ({tuning.what}) was tried and not kept; this is the answer without it."


def _against_uniform(row: ComparisonRow, networks: Sequence[NetworkFacts]) -> Iterator[str]:
    uniform = [network for network in networks if network.kind == "uniform"]
    within = [network for network in uniform if network.is_within]
    allowed = [network for network in within if network.keeps_rules]
    if not uniform:
        return
    best = min(allowed or within or uniform, key=lambda network: network.measured.divergence)
    where = "the best uniform precision within the budgets"
    if not within:
        yield "No uniform precision meets these budgets."
        where = "the best uniform precision, which does not meet them"
    elif not allowed:
        yield "No uniform precision meets these budgets and keeps the rules for layers."
        where = f"{where}, which breaks a rule"
    name, lost = row.measured.metric.name, best.measured.divergence
    what = "the divergence" if name == "kl" else f"the {name.replace('-', ' ')}"
    if row.measured.divergence == lost:
        yield f"The answer loses what uniform {best.label} does, {where}."
    elif lost > 0:
        ratio = times(row.measured.divergence / lost)
        yield f"The answer has {ratio} × {what} of uniform {best.label}, {where}."
    seen, other = row.measured.num_examples, best.measured.num_examples
    # A tuned answer is measured on those that did not decide about it.
    if seen != other:
        yield f"The answer was measured on {seen:,} examples, uniform {best.label} on {other:,}."


def _accuracy(answer: Measurement, original: Measurement) -> Iterator[str]:
    if answer.accuracy is None or original.accuracy is None:
        return
    drop = original.accuracy - answer.accuracy
    # As if of different examples, though they are the same ones: this can call a difference
    # chance that is none, and not the other way round.
    error = sqrt((answer.accuracy_error or 0.0) ** 2 + (original.accuracy_error or 0.0) ** 2)
    both = (
        f"{share(answer.accuracy, 1)} against {share(original.accuracy, 1)}, "
        f"{answer.num_examples:,} examples"
    )
    if abs(drop) <= 2 * error or drop == 0:
        yield f"In accuracy it is not distinguishable from the original ({both})."
    else:
        word = "below" if drop > 0 else "above"
        yield f"Its accuracy is {share(abs(drop), 1)} {word} that of the original ({both})."


def _score(name: str, answer: Measurement, original: Measurement) -> Iterator[str]:
    # The accuracy has a sentence of its own.
    if not name or name == "accuracy" or answer.score is None or original.score is None:
        return
    both = [plain(found.score, 4) for found in (answer, original)]
    yield f"Its score ({name}) is {both[0]}, that of the original {both[1]}."
