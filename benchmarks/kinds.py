"""Kinds of networks on which gradients are easily wrong: what is predicted, over what is measured.

    python benchmarks/kinds.py > benchmarks/kinds.json

Small networks with random weights, one of each kind. For every layer at 4 and 8 bits, alone: what
the sketch (of 8 probes) and the default estimator predict, over the divergence of the two outputs,
which is computed here and not by mpq. Then a search within the bytes of uniform 4 bits beside
that, both measured on examples that were not used to predict; the share of bytes that lies in
layers; what was said; and how far the exported network is from the module where all layers are in
fp32, or why it was refused.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mpq
from mpq import Assignment, Precision, SearchResult

PRECISIONS = ("w4", "w8")
SKETCH = "sketch:num_probes=8"
"""More than one, as a graph is one example, of which one draw says little."""


class Rounded(nn.Module):
    """No gradient flows to the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of an activation with steps of a quarter."""
        hidden = torch.round(torch.relu(self.a(x)) * 4) / 4
        found: Tensor = self.b(hidden)
        return found


class ScaledEmbedding(nn.Embedding):
    """As Gemma's and BART's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Four times the rows."""
        return super().forward(input) * 4


class ScaledLinear(nn.Linear):
    """Equalised learning rate."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """With a fifth of the weight."""
        return F.linear(input, self.weight * 0.2, self.bias)


class StandardisedConv(nn.Conv2d):
    """Every filter with mean 0 and variance 1, as in BiT."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """With standardised filters."""
        w = self.weight
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, (w - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class Graph(nn.Module):
    """Three layers of a graph network: all nodes are one example."""

    def __init__(self, nodes: int = 64) -> None:
        super().__init__()
        links = (torch.rand(nodes, nodes) < 0.08).float()
        links = ((links + links.T + torch.eye(nodes)) > 0).float()
        root = links.sum(1).rsqrt()
        self.register_buffer("links", root[:, None] * links * root)
        self.parts = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[nodes, 5]``."""
        for i, part in enumerate(self.parts):
            x = self.links @ part(x)
            x = torch.relu(x) if i < 2 else x * 4
        return x


class Experts(nn.Module):
    """A router, and the weights of three experts in one parameter."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.inner, self.router, self.width = nn.Linear(16, 16), nn.Linear(16, 3), width
        self.up = nn.Parameter(torch.randn(3, 32, 16) / 4)
        self.down = nn.Parameter(torch.randn(3, width, 32) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits: every row goes to one expert."""
        x = torch.relu(self.inner(x))
        weight, chosen = self.router(x).softmax(-1).max(-1)
        found = x.new_zeros(len(x), self.width)
        for expert in range(3):
            rows = (chosen == expert).nonzero()[:, 0]
            hidden = torch.relu(F.linear(x[rows], self.up[expert]))
            one = F.linear(hidden, self.down[expert]) * weight[rows, None]
            found = found.index_add(0, rows, one * 4)
        return found


class Stacked(nn.Module):
    """Three routers, one behind the other: most layers lie before a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Experts(16) for _ in range(3)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = F.layer_norm(x + block(x), (16,))
        found: Tensor = self.head(x)
        return found


class Detector(nn.Module):
    """A class and a box for every example."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(16, 32)
        self.head, self.box = nn.Linear(32, 5), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """By name."""
        hidden = torch.relu(self.body(x))
        return {"logits": self.head(hidden), "boxes": self.box(hidden)}


def tokens(draw: torch.Generator) -> Tensor:
    return torch.randint(50, (64, 6), generator=draw)


def images(draw: torch.Generator) -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=draw)


def rows(draw: torch.Generator) -> Tensor:
    return torch.randn(64, 16, generator=draw)


def logits_of(output: Any, other: Any) -> float:
    """KL divergence in nats per row, in double precision."""
    one, two = (x.double().log_softmax(-1) for x in (output, other))
    return float((one.exp() * (one - two)).sum(-1).mean())


def head_of(output: Any, other: Any) -> float:
    """Of a detector the logits alone."""
    return logits_of(output["logits"], other["logits"])


def both_of(output: Any, other: Any) -> float:
    """And half the squared error of a box over its squared length."""
    one, two = (x["boxes"].double() for x in (output, other))
    lengths = one.square().sum(-1)
    return head_of(output, other) + float(((one - two).square().sum(-1) / lengths / 2).mean())


Kind = tuple[Callable[[], nn.Module], Callable[[torch.Generator], Tensor], Any, str]
KINDS: dict[str, Kind] = {
    "no gradient: rounded activations": (Rounded, rows, logits_of, "kl"),
    "own forward: scaled embedding": (
        lambda: nn.Sequential(ScaledEmbedding(50, 8), nn.Flatten(), nn.Linear(48, 5)),
        tokens, logits_of, "kl",
    ),
    "own forward: scaled weight": (
        lambda: nn.Sequential(ScaledLinear(16, 32), nn.ReLU(), nn.Linear(32, 5)),
        rows, logits_of, "kl",
    ),
    "own forward: weight-standardised convolution": (
        lambda: nn.Sequential(
            StandardisedConv(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
        ),
        images, logits_of, "kl",
    ),
    "rows are no examples: graph": (Graph, rows, logits_of, "kl"),
    "weights outside modules: fused experts": (Experts, rows, logits_of, "kl"),
    "before a choice: stacked experts": (Stacked, rows, logits_of, "kl"),
    "several outputs: the first alone": (Detector, rows, head_of, "kl"),
    "several outputs: both": (
        Detector, rows, both_of,
        "outputs:terms=logits=kl+boxes",
    ),
}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    found = {name: of_kind(*kind) for name, kind in KINDS.items()}
    header = {"command": " ".join(["python", *sys.argv]), "torch": torch.__version__}
    seconds = {"processor_seconds": time.process_time()}
    print(json.dumps({**header, **found, **seconds}, indent=1))


def of_kind(
    make: Callable[[], nn.Module],
    draw: Callable[[torch.Generator], Tensor],
    loss_of: Callable[[Any, Any], float],
    metric: str,
) -> dict[str, Any]:
    """One network: its cells, a search, its export."""
    torch.manual_seed(0)
    model, generator = make().eval(), torch.Generator().manual_seed(1)
    data, held_out = ([draw(generator) for _ in range(8)] for _ in range(2))

    def search(sensitivity: str, limit: str, *candidates: str) -> SearchResult:
        task = mpq.Task(
            model, data, held_out, candidates=candidates, metric=metric, rounding="nearest"
        )
        return mpq.search(task, {"weight_bytes": limit}, sensitivity=sensitivity)

    exact = search(SKETCH, "1x:fp32", *PRECISIONS, "fp32")
    default = search("auto", "1x:fp32", *PRECISIONS, "fp32")
    gradient = search("output-gradient", "1x:fp32", *PRECISIONS, "fp32")
    measured = {
        name: [loss_of_one(model, data, exact.assignment, name, x, loss_of) for x in PRECISIONS]
        for name in exact.problem.loss.layers
    }
    return {
        "share_of_bytes_in_layers": share_in_layers(exact),
        "measured": measured,
        "sketch_of_8_probes_over_measured": over(exact, measured),
        "default_over_measured": over(default, measured),
        "output_gradient_over_measured": over(gradient, measured),
        "within_uniform_w4": beside_uniform(search("auto", "1x:w4", "w2", "w4", "w8")),
        "export_in_fp32": export_of(model, exact.assignment, data),
    }


def share_in_layers(result: SearchResult) -> float:
    assert result.coverage is not None
    return result.coverage.covered_bytes / result.coverage.num_bytes


def loss_of_one(
    model: nn.Module,
    data: list[Tensor],
    assignment: Assignment,
    name: str,
    precision: str,
    loss_of: Callable[[Any, Any], float],
) -> float:
    """What one layer at a precision loses, the others in fp32."""
    layers = tuple(
        replace(x, precision=Precision.parse(precision if x.name == name else "fp32"))
        for x in assignment.layers
    )
    other = mpq.quantize(model, replace(assignment, layers=layers))
    with torch.no_grad():
        return float(np.mean([loss_of(model(batch), other(batch)) for batch in data]))


def over(result: SearchResult, measured: dict[str, list[float]]) -> dict[str, list[float | None]]:
    """Predicted over measured, layer by layer; ``None`` where nothing was lost."""
    table = result.problem.loss
    columns = [table.precisions.index(Precision.parse(x)) for x in PRECISIONS]
    return {
        name: [float(p / m) if m > 0 else None for p, m in zip(row, measured[name], strict=True)]
        for name, row in zip(table.layers, table.values[:, columns], strict=True)
    }


def beside_uniform(result: SearchResult) -> dict[str, Any]:
    """The answer and uniform 4 bits on held-out examples, and what the search said."""
    check = result.spot_check
    return {
        "result": result.comparison("result").measured.divergence,
        "uniform w4": result.comparison("w4a32").measured.divergence,
        "replaced_by": result.safeguard.replaced_by if result.safeguard else None,
        "unscored": result.provenance.unscored,
        "spot_check": check.sentences if check else (),
    }


def export_of(model: nn.Module, assignment: Assignment, data: list[Tensor]) -> Any:
    """Largest difference of the exported network from the module, or why it was refused."""
    layers = tuple(replace(x, precision=Precision.parse("fp32")) for x in assignment.layers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            mpq.export(replace(assignment, layers=layers), path, "onnx", model, data)
        except mpq.MpqError as error:
            return str(error)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        batch = data[0][: given.shape[0]]
        found = session.run(None, {given.name: batch.numpy()})[0]
    with torch.no_grad():
        output = model(batch)
    expected = output["logits"] if isinstance(output, dict) else output
    return float((torch.as_tensor(found) - expected).abs().max())


if __name__ == "__main__":
    main()
