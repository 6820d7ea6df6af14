"""Negative scales in every backend: it computes with them as the simulation does, or refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpq
from mpq.backends import BACKENDS, Backend, Target
from mpq.backends.onnx.formats import kernel_of
from mpq.backends.recipes._base import NOT_OURS, Recipe
from mpq.backends.torchao import KERNELS
from mpq.errors import ModelError, PrecisionError
from mpq.network.examples import Calibration
from mpq.network.layer import Layer
from mpq.network.network import Network
from mpq.problem.assignment import AssignedLayer, Assignment
from mpq.quantization.observer import ActivationRanges
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.gguf import networks as gguf_networks
from tests.backends.llamas import examples, llama
from tests.backends.negated import negated

MIX = (
    "w4a8", "w8a8", "w4g32", "w7a8", "w2g32", "w8a8d", "w4", "w8g32", "w3g32a8d", "w8t", "w8a8s",
    "w3", "w8", "w4ta8", "w5", "w4g64", "w8a8sd", "w2", "w4a8d", "w6", "w2g64a8d",
)  # fmt: skip
"""Precisions of layers, one after the other; of each backend those that it holds."""
OTHERS: dict[str, Callable[[Layer, Precision], bool]] = {
    "simulate": lambda *_: True,
    "text": lambda *_: True,
    "onnx": lambda layer, precision: kernel_of(layer.kind, precision) is not None,
    "torchao": lambda layer, precision: layer.kind == "linear" and precision in KERNELS,
}
"""What backends hold that make networks, or are neither targets nor recipes."""
ROUNDS_MORE = {"onnx": 0.1, "torchao": 0.06}
"""Standard deviations of the outputs by which a kernel may differ that rounds more than the
simulation: outputs of convolutions, inputs while running."""


class Images(nn.Module):
    """Convolutions, one with groups and one without a bias, then linear layers on 32 numbers,
    all but two of which have biases."""

    def __init__(self, has_ids: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
        self.plain = nn.Conv2d(8, 32, 1, bias=False)
        self.layers = nn.ModuleList(nn.Linear(32, 32, bias=i % 3 != 1) for i in range(6))
        self.head = nn.Linear(32, 8)
        self.ids = nn.Embedding(4, 32) if has_ids else None
        self.register_buffer("places", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 8]``."""
        x = self.plain(self.grouped(self.stem(x).relu()).relu()).mean((2, 3))
        if self.ids is not None:
            x = x + self.ids(self.places).sum(0)
        for layer in self.layers:
            x = layer(x).relu()
        found: Tensor = self.head(x)
        return found


def images() -> list[Tensor]:
    """A batch."""
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=draws)]


def network_for(backend: Backend) -> tuple[nn.Module, Any]:
    """Images where the backend takes any network, else a Llama."""
    if backend.name == "gguf":  # with as many embeddings as its tokenizer has tokens
        return gguf_networks.network("llama"), gguf_networks.examples(4)
    model = Images(has_ids=backend.name in ("onnx", "onnx-qdq", "openvino")).eval()
    if isinstance(backend, Target):
        try:
            backend.check_network(model)
        except ModelError:
            return llama(), examples()
    return model, images()


def holds(backend: Backend, layer: Layer, precision: Precision) -> bool:
    """Whether it says that it holds a layer so."""
    if isinstance(backend, Target):
        return not backend.why_not(layer, precision, None)
    assigned = AssignedLayer(layer.name, layer.kind, layer.weight_shape, precision)
    if isinstance(backend, Recipe):
        return not backend.why_not(assigned)
    return OTHERS[backend.name](layer, precision)


def in_turn(
    model: nn.Module, data: Any, backend: Backend, mix: tuple[str, ...] = MIX
) -> Assignment:
    """One precision after the other, of those that the backend holds, with negative scales."""
    calibration = Calibration.of(data)
    network = Network.of(model, calibration)
    precisions = [Precision.parse(text) for text in mix]
    ranges = ActivationRanges.calibrate(network, calibration, precisions, "minmax")
    ties = backend.ties([x.name for x in network.layers]) if isinstance(backend, Target) else ()
    first = {other: tie[0] for tie in ties for other in tie}
    layers = list[AssignedLayer]()
    known: dict[str, Precision] = {}
    for place, layer in enumerate(network.layers):
        able = [x for x in precisions if holds(backend, layer, x)] or [ORIGINAL]
        chosen = known.setdefault(first.get(layer.name, layer.name), able[place % len(able)])
        ends = None if layer.kind == "embedding" else ranges.of(layer.name, chosen.activation)
        layers.append(AssignedLayer(layer.name, layer.kind, layer.weight_shape, chosen, ends))
    found = Assignment(tuple(layers), weight_range="minmax")
    if isinstance(backend, Target):
        found = replace(found, numerics=backend.fitted(model).arithmetic)
    return negated(model, found)


def needed(backend: Backend) -> None:
    """Skips where its packages are not installed."""
    packages = {"onnx": ("onnxscript", "onnxruntime"), "aimet": ("onnxscript",)}
    packages |= {"auto-round": ("auto_round",), "mlx": ("mlx_lm",), "gguf": ("xllamacpp",)}
    for package in packages.get(backend.name, getattr(backend, "packages", ())):
        pytest.importorskip(package)


def num_negative(assignment: Assignment) -> int:
    """Layers with a negative scale."""
    assert assignment.weights is not None
    return sum(bool((x.scale < 0).any()) for x in assignment.weights.by_layer.values())


FILES = [part.name for part in BACKENDS if part.writes_files and part.name != "llama-cpp-cache"]
"""But for a recipe of caches alone, which has no weights."""
NETWORKS = [part.name for part in BACKENDS if part.makes_networks and part.name != "simulate"]


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", FILES)
def test_a_file_has_negative_scales_as_simulated_or_is_refused(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A target's own runtime is asked: weight by weight, and output by output."""
    backend = BACKENDS.build(name)
    model, data = network_for(backend)
    found = in_turn(model, data, backend)
    assert num_negative(found) > 1
    is_positive = isinstance(backend, Target) and backend.arithmetic.scale_sign == "positive"
    spelled = name
    if not is_positive:
        needed(backend)
    if name == "gguf":
        spelled = f"gguf:tokenizer={request.getfixturevalue('tokenizer')}"

    if is_positive or name == "aimet":
        with pytest.raises(PrecisionError, match=rf"{name} reads positive scales, and \d+ layers"):
            mpq.export(found, tmp_path / "out", spelled, model, data)
        return
    made = mpq.export(found, tmp_path / "out", spelled, model, data)

    if isinstance(backend, Recipe):
        assert made.verdict == backend.note
        assert NOT_OURS in backend.note_of(found)
    elif backend.needs_network:
        # What a target accepts, it has judged by itself.
        assert made.deviation is not None
        assert isinstance(backend, Target) or made.deviation < ROUNDS_MORE[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_negative_scales_as_simulated(name: str) -> None:
    """Within what its kernels round more."""
    backend = BACKENDS.build(name)
    needed(backend)
    model, data = Images(has_ids=False).eval(), images()
    found = in_turn(model, data, backend, ("w8a32", "w8a8d"))
    assert num_negative(found) > 1

    made = mpq.quantize(model, found, backend)

    with torch.no_grad():
        expected, got = mpq.quantize(model, found)(data[0]), made(data[0])
    assert float((got - expected).abs().max()) < ROUNDS_MORE[name] * float(expected.std())
