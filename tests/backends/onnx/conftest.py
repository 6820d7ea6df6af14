"""A fixture of exports to graphs."""

from collections.abc import Iterator

import pytest

from mpq.backends.onnx.template import GraphTemplate
from mpq.network.examples import Calibration
from mpq.network.network import Network


@pytest.fixture(scope="module")
def one_trace_per_network() -> Iterator[None]:
    """torch's exporter takes seconds; the networks of one name are the same every time."""
    known: dict[tuple[str, int], GraphTemplate] = {}
    original = GraphTemplate.of

    def of(
        network: Network, data: Calibration, batch_size: int = 1, **wanted: bool
    ) -> GraphTemplate:
        key = (network.fingerprint, batch_size)
        if key not in known:
            known[key] = original(network, data, batch_size, **wanted)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphTemplate, "of", of)
        yield
