"""Several outputs of one network as one loss, and outputs that nobody looks at."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mpq
from mpq.cli.__main__ import app
from mpq.errors import InputError, ModelError, UnknownNameError
from mpq.network.metric import KL, SquaredError
from mpq.network.metrics import METRICS
from mpq.network.named_outputs import NamedOutputs, unscored
from mpq.network.network import Network

TERMS = "logits=kl+boxes.xy=squared-error*0.5+boxes.size"


class Detector(nn.Module):
    """A class, a place and a size for every example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(16, 32), nn.Linear(32, 5)
        self.xy, self.size = nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Nested, as detectors return it."""
        hidden = torch.relu(self.body(x))
        boxes = {"xy": self.xy(hidden), "size": self.size(hidden).exp()}
        return {"logits": self.head(hidden), "boxes": boxes, "hidden_states": (hidden,)}


def examples(count: int = 4) -> list[Tensor]:
    """Batches of 32."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(count)]


def parts(output: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The three outputs."""
    return output["logits"], output["boxes"]["xy"], output["boxes"]["size"]


def test_the_divergence_is_the_weighted_sum_of_the_parts() -> None:
    """Each in its own metric; sizes have the default one."""
    model, other = Detector().eval(), Detector().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        first, second = model(examples()[0]), other(examples()[0])
    metric = NamedOutputs(TERMS)

    found = metric.divergence(metric.positions(first), metric.positions(second))

    metrics = (KL, SquaredError(), SquaredError(relative=True))
    one, two, three = (
        m.divergence(a[:, None], b[:, None])
        for m, a, b in zip(metrics, parts(first), parts(second), strict=True)
    )
    torch.testing.assert_close(found, one + 0.5 * two + three)


def test_probes_have_the_curvature_of_the_divergence() -> None:
    """Their mean outer product is its Hessian, which autograd computes."""
    metric, output = NamedOutputs(TERMS), Detector().eval()(examples()[0][:1])
    outputs = metric.positions(output).detach()
    generator, weights = torch.Generator().manual_seed(0), torch.ones(20000, 1, dtype=torch.float64)

    # Every example draws its own: as many copies of one are as many draws.
    drawn = metric.probe(outputs.repeat(20000, 1, 1), weights, generator)[:, 0]

    at = outputs.double()
    hessian = torch.autograd.functional.hessian(lambda f: metric.divergence(at, f).sum(), at)
    expected = hessian.reshape(9, 9)
    mean = drawn.double().T @ drawn.double() / len(drawn)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.03 * float(expected.abs().max()))


def test_an_output_that_nobody_looks_at_is_named_with_the_layers_behind_it() -> None:
    """With all of them scored no layer is without effect."""
    data = examples()
    one = mpq.search(mpq.Task(Detector().eval(), data, data, candidates=["w2", "w8"]),
                     {"effective_bits": 7})  # fmt: skip
    task = mpq.Task(Detector().eval(), data, data, candidates=["w2", "w8"],
                    metric=f"outputs:terms={TERMS}")  # fmt: skip
    every = mpq.search(task, {"effective_bits": 7})

    assert one.provenance.unscored == ("boxes.xy", "boxes.size")
    assert one.spot_check is not None
    assert one.spot_check.without_effect == ("xy", "size")
    assert every.provenance.unscored == ()
    assert every.spot_check is not None
    assert every.spot_check.without_effect == ()
    assert every.problem.loss.unit == "weighted"


def test_the_sketch_predicts_the_sum() -> None:
    """Near what is measured, in every layer."""
    data = examples()
    task = mpq.Task(Detector().eval(), data, data, candidates=["w4", "w8"],
                    metric=f"outputs:terms={TERMS}")  # fmt: skip
    tables = [
        mpq.search(task, {"effective_bits": 7}, sensitivity=name).problem.loss.values
        for name in ("sketch:num_probes=32", "measured")
    ]

    np.testing.assert_allclose(tables[0], tables[1], rtol=0.5)


def test_tuples_and_attributes_are_addressed_by_their_place() -> None:
    """What a metric does not look at is told by the same paths."""
    output = (torch.zeros(2, 3), {"boxes": torch.zeros(2, 4)}, [torch.zeros(2, 5)])

    found = NamedOutputs("0=kl+1.boxes")

    assert found.positions(output).shape == (2, 1, 7)
    assert unscored(output, found) == ("2.0",)


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ("", InputError, "needs terms"),
        ("=kl", InputError, "an output is a path, its metric and a positive weight"),
        ("logits=kl*-1", InputError, "a positive weight"),
        ("logits=kl*x", InputError, "a positive weight"),
        ("logits=nothing", UnknownNameError, "nothing"),
    ],
)
def test_terms_that_say_nothing_are_refused(
    terms: str, error: type[Exception], message: str
) -> None:
    """Before the network runs."""
    with pytest.raises(error, match=message):
        NamedOutputs(terms)


def test_an_output_that_is_not_there_is_refused_with_those_that_are() -> None:
    """By its path."""
    with pytest.raises(ModelError, match="no tensor at 'masks'; it has: logits, boxes.xy, boxes"):
        Network.of(Detector().eval(), examples(), metric=METRICS.build("outputs:terms=masks"))


def test_the_command_takes_outputs(tmp_path: Path) -> None:
    """The demo has one, and no such path."""
    asked = ["search", "--outputs", "logits=kl,masks*2", "--output", str(tmp_path / "run")]

    ran = CliRunner().invoke(app, asked)

    assert ran.exit_code == 2
    assert "no tensor at" in ran.stderr


class Pairs(nn.Module):
    """Two encoders, whose scores are of every row against every row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Scores, and both embeddings."""
        left, right = self.left(x), self.right(x.flip(1))
        return {"scores": left @ right.T, "left": left, "right": right}


def test_outputs_of_rows_that_are_one_example() -> None:
    """The sketch is near what is measured there too."""
    data = examples(8)
    task = mpq.Task(Pairs().eval(), data, data, candidates=["w4", "w8"],
                    metric="outputs:terms=scores=kl+left=cosine")  # fmt: skip

    found = [
        mpq.search(task, {"effective_bits": 7}, sensitivity=name).problem.loss.values
        for name in ("sketch:num_probes=32", "measured")
    ]

    np.testing.assert_allclose(found[0], found[1], rtol=0.7)


def test_a_weight_needs_no_metric() -> None:
    """Boxes are compared relative to their size, and count five times."""
    (logits, boxes) = NamedOutputs("logits+pred_boxes*5").parts

    assert (logits.path, logits.metric, logits.weight) == ("logits", KL, 1.0)
    assert (boxes.path, boxes.metric, boxes.weight) == ("pred_boxes", SquaredError(True), 5.0)


def images(*counts: int) -> list[dict[str, Tensor]]:
    """Logits and so many boxes of every image."""
    torch.manual_seed(0)
    return [{"logits": torch.randn(3), "boxes": torch.randn(n, 4)} for n in counts]


def test_one_path_goes_over_all_images_of_a_list() -> None:
    """As if they had been stacked; a star behind it is the weight."""
    output = images(6, 6)
    stacked = {key: torch.stack([image[key] for image in output]) for key in output[0]}

    found = NamedOutputs("*.logits+*.boxes*5")

    assert found.parts[1].weight == 5
    expected = NamedOutputs("logits+boxes*5").positions(stacked)
    torch.testing.assert_close(found.positions(output), expected)
    assert unscored(output, found) == ()
    assert unscored(output, NamedOutputs("*.logits")) == ("*.boxes",)
    assert unscored(output, NamedOutputs("*.logits+0.boxes")) == ("1.boxes",)


@pytest.mark.parametrize(
    ("counts", "terms", "message"),
    [
        ((6, 5), "*.boxes", r"have other shapes for other images \(\(5, 4\), \(6, 4\)\)"),
        ((0, 0), "*.boxes", "are empty for all images of a batch"),
        ((6, 6), "*.masks", r"no tensor at '\*.masks'.*it has: \*.logits, \*.boxes"),
        ((6, 6), "0.boxes+*.boxes", "unlike numbers of examples"),
    ],
)
def test_lists_that_cannot_be_compared_are_refused(
    counts: tuple[int, ...], terms: str, message: str
) -> None:
    """With the reason."""
    with pytest.raises(ModelError, match=message):
        NamedOutputs(terms).positions(images(*counts))


def test_two_stars_are_refused() -> None:
    """There is one axis of examples."""
    with pytest.raises(InputError, match="at most one step"):
        NamedOutputs("*.parts.*.boxes")


def test_a_network_with_several_outputs_is_told_which_it_has() -> None:
    """Where the metric finds none by itself."""
    with pytest.raises(ModelError, match="it has the outputs a, b.c; .*--outputs 'a,b.c'"):
        KL.positions({"a": torch.zeros(2, 3), "b": {"c": torch.zeros(2, 3)}})


def test_softened_outputs_know_lengths_that_are_seen_later() -> None:
    """A network may answer at another length in the pass that is differentiated."""
    metric = NamedOutputs("a=squared-error+b=squared-error")
    softened = metric.softened(1.5)

    found = metric.positions({"a": torch.randn(2, 3, 4), "b": torch.randn(2, 5, 2)})

    probe = softened.probe(found, torch.ones(2, 1), torch.Generator().manual_seed(0))
    assert probe.shape == found.shape
