"""What every profile can say, whether it was measured or estimated."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from mpq.hardware_profiles.attention_price import AttentionPrice
from mpq.hardware_profiles.sourced import Sourced
from mpq.network.layer import Layer
from mpq.network.workload import Workload
from mpq.problem.cost_table import CostTable
from mpq.quantization.precision import Precision


class Profile(Protocol):
    """A device: what it can run, and what that costs.

    Every number has a source. The models differ in where numbers come from: ``Roofline`` computes
    them from a datasheet's rates, ``MeasuredTable`` looks up what was measured.
    """

    @property
    def name(self) -> str:
        """Such as ``nvidia-t4``."""

    @property
    def title(self) -> str:
        """What it is, for people."""

    @property
    def basis(self) -> str:
        """``estimated`` or ``measured``."""

    @property
    def notes(self) -> str:
        """What is left out."""

    @property
    def formats(self) -> tuple[str, ...]:
        """What it runs, for people: names of arithmetic, or of precisions."""

    @property
    def resources(self) -> tuple[str, ...]:
        """What it prices: ``latency``, ``energy``, or both."""

    @property
    def precisions(self) -> tuple[Precision, ...] | None:
        """All that it was measured at; ``None`` where it prices whatever its formats run."""

    def runs_somewhere(self, precision: Precision) -> bool:
        """Whether any layer that computes could run at this precision."""

    def can_run(self, layer: Layer, precision: Precision) -> bool:
        """Whether it runs this layer at this precision."""

    def cost(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` seconds or joules of one batch; ``nan`` where it cannot run a layer.

        Raises:
            UnknownNameError: If it does not price that resource.
            InputError: If it has no number for a layer that it can run.
        """

    def uncertainty(
        self,
        resource: str,
        layers: Sequence[Layer],
        candidates: Sequence[Precision],
        workload: Workload,
    ) -> CostTable:
        """``[L, B]`` half width of the 95 % interval, in the cost's unit; ``nan``: unknown."""

    def attention(self, resource: str) -> AttentionPrice | None:
        """What decoding with a key-value cache takes; ``None``: it does not say.

        Raises:
            UnknownNameError: If it does not price that resource.
        """

    def numbers(self) -> Mapping[str, Sourced]:
        """Every number with its unit in the name, for people."""
