"""The target ``openvino``: files of its own, weights of 2 bits among them."""

from pathlib import Path

import pytest
from torch import nn

from mpq.backends.openvino import LAYERS_FILE, OpenVino
from mpq.backends.shipping import ship
from mpq.errors import PrecisionError
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.precision import ORIGINAL, Precision
from tests.backends.onnx.networks import Images, Words, examples, in_turn, made

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


@pytest.mark.parametrize(
    ("kind", "mix"),
    [
        (Images, ("w2", "w3", "w4z", "w2z", "w6", "w7", "wfp8a32")),
        (Images, ("w7a8", "w4a8s", "w2g9a8")),
        (Words, ("w2z", "w2g8", "w4g16", "w2zg2", "w2zg10", "w8z", "w16a32")),
    ],
)
@pytest.mark.usefixtures("same_process")
def test_openvino_computes_what_the_simulation_does(
    kind: type[nn.Module], mix: tuple[str, ...], tmp_path: Path
) -> None:
    """Weights to the bit, outputs to float32's last digits; 2-bit codes take 2 bits."""
    model = made(kind)
    found = in_turn(model, OpenVino(), mix)

    check = ship(OpenVino(), "openvino", found, tmp_path / "out", model, examples(model))

    assert check.max_weight_difference == 0.0
    assert check.median_difference < 1e-5 * check.spread
    assert check.num_layers == sum(x.precision != ORIGINAL for x in found.layers)
    has_two = sum(x.precision.weight.number.name == "int2" for x in found.layers)
    assert check.kinds.get("u2", 0) == has_two
    assert (tmp_path / "out" / LAYERS_FILE).exists()


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("w4g24", "32 inputs are no whole groups of 24"),
        ("w8a8", "saturate at 8-bit weights"),
        ("w2t", "2-bit weights of one scale"),
        ("w4a16", "rounds no inputs to fp16"),
    ],
)
def test_what_openvino_cannot_hold_is_refused(precision: str, why: str) -> None:
    """With the layer's name and the reason."""
    layer = AssignedLayer("fc", "linear", (8, 32), Precision.parse(precision))

    with pytest.raises(PrecisionError, match=f"'fc' at .*{why}"):
        OpenVino().check([layer])
