"""What is observed of layers' inputs, and the keys that measurements are kept under."""

import pytest
import torch
from torch import Tensor, nn

from mpq.network.examples import Calibration
from mpq.network.network import Network
from mpq.quantization.codes import Codes
from mpq.quantization.fingerprint import measurement_key
from mpq.quantization.input_sample import SAMPLES_PER_BATCH
from mpq.quantization.numerics import Numerics
from mpq.quantization.observer import ActivationRanges, observe_inputs
from mpq.quantization.precision import Precision
from mpq.quantization.quantizer import Quantizer
from mpq.quantization.ranges import LeastSquares, MinMax


class Sharing(nn.Module):
    """``b`` reads what ``a`` reads first; ``a`` is called twice, or once."""

    def __init__(self, num_calls: int) -> None:
        super().__init__()
        self.a, self.b, self.num_calls = nn.Linear(4, 4), nn.Linear(4, 4), num_calls

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.a(x)
        if self.num_calls > 1:
            out = self.a(out * 100 + 100)
        return out.add(self.b(x))


@pytest.mark.parametrize("num_calls", [1, 2])
def test_layers_share_what_both_read_and_nothing_else(num_calls: int) -> None:
    """Where one of them reads something besides, each has numbers of its own."""
    torch.manual_seed(0)
    batches = [torch.randn(5, 4), torch.randn(2, 4)]
    data = Calibration(batches)
    network = Network.of(Sharing(num_calls).eval(), data)

    found = observe_inputs(network, data, LeastSquares())

    numbers = {name: sample.numbers for name, sample in found.items()}
    assert torch.equal(numbers["b"], torch.cat([batch.flatten() for batch in batches]))
    if num_calls == 1:
        assert found["a"] is found["b"]
    else:
        assert len(numbers["a"]) == 2 * len(numbers["b"])
        assert float(numbers["a"].max()) > 10 * float(numbers["b"].max())


@pytest.mark.parametrize("method", [MinMax(), LeastSquares()], ids=lambda m: m.name)
@pytest.mark.parametrize("num_numbers", [SAMPLES_PER_BATCH, SAMPLES_PER_BATCH + 64])
def test_of_a_large_input_a_sample_is_kept(num_numbers: int, method: MinMax | LeastSquares) -> None:
    """65,536 numbers of each batch, drawn from everywhere; extremes are kept where they suffice."""
    assert SAMPLES_PER_BATCH == 65_536
    x = torch.arange(num_numbers, dtype=torch.float32).reshape(-1, 64)
    data = Calibration([x, x])
    network = Network.of(nn.Sequential(nn.Linear(64, 2)).eval(), data)
    before = torch.get_rng_state()

    found = observe_inputs(network, data, method)["0"].numbers

    assert torch.equal(torch.get_rng_state(), before)
    assert found.dtype == torch.float32
    if method.reads_extremes_only:
        assert found.tolist() == [0, num_numbers - 1] * 2
        return
    assert len(found) == 2 * 65_536
    is_whole = torch.equal(found, x.flatten().repeat(2))
    assert is_whole == (num_numbers == 65_536)
    assert 0 <= float(found.min()) < 100
    assert num_numbers - 100 < float(found.max()) < num_numbers
    assert set(found.tolist()) <= set(x.flatten().tolist())


def test_only_static_formats_are_calibrated() -> None:
    """For each layer and each of them once; the range has 0 in it."""
    data = Calibration([torch.rand(5, 4) + 1])
    network = Network.of(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval(), data)
    spellings = ("w2a8", "w4a8", "w4a4", "w8a8d", "w4a16", "fp32")
    candidates = [Precision.parse(spelling) for spelling in spellings]

    known = ActivationRanges.calibrate(network, data, candidates, "minmax").known

    assert list(known) == [
        (name, Precision.parse(spelling).activation)
        for name in ("0", "1")
        for spelling in ("w2a8", "w4a4")
    ]
    assert {found.low for (name, _), found in known.items() if name == "0"} == {0.0}
    assert not ActivationRanges.calibrate(network, data, candidates[3:]).known


def test_a_key_says_only_what_is_set() -> None:
    """A seed of a network that draws, and numerics that are not ours; else neither."""
    data = Calibration([torch.ones(5, 4)])
    precision = Precision.parse("w4a32")

    def key(seed: int | None, numerics: Numerics) -> dict[str, str]:
        network = Network.of(nn.Sequential(nn.Linear(4, 3)).eval(), data, allow_randomness=seed)
        quantizer = Quantizer(ActivationRanges({}), "minmax", numerics)
        return measurement_key(network, data, quantizer, [precision, precision])

    plain = key(None, Numerics())
    other = Numerics(scale="bf16")

    assert plain["precisions"] == "w4a32, w4a32"
    assert plain["weight_range"] == "minmax"
    assert not plain.keys() & {"allow_randomness", "numerics"}
    assert key(0, other).items() >= {"allow_randomness": "0", "numerics": repr(other)}.items()
    assert {name for name in key(0, other) if name not in plain} == {"allow_randomness", "numerics"}


def test_a_key_tells_weights_apart_that_were_rounded_with_regard_to_data() -> None:
    """A journal of another rounding is of another measurement."""
    data = Calibration([torch.ones(5, 4)])
    network = Network.of(nn.Sequential(nn.Linear(4, 3)).eval(), data)
    precision = Precision.parse("w4a32")
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def key(numbers: Tensor | None) -> dict[str, str]:
        scale, point = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int32)
        kept = {}
        if numbers is not None:
            codes = Codes(precision.weight, numbers, scale, point, 4)
            kept["0", precision.weight] = codes.stored(rows)
        quantizer = Quantizer(ActivationRanges({}), "minmax", stored=kept)
        return measurement_key(network, data, quantizer, [precision])

    ones, others = key(torch.ones(3, 4)), key(torch.ones(3, 4).triu())

    assert "rounding" not in key(None)
    assert ones["rounding"] != others["rounding"]
    assert ones == key(torch.ones(3, 4))
