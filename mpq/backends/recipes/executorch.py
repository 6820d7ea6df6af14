"""ExecuTorch by torchao: ``FqnToConfig`` with an entry per layer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, final

from mpq.backends.recipes._base import Recipe
from mpq.backends.torchao import quantization, scheme
from mpq.problem.assignment import AssignedLayer

RUNS: Final = ("w8a8d", "w4a8d", "w4g32a8d")
"""What XNNPACK in ExecuTorch was found to compute."""


@final
@dataclass(frozen=True)
class ExecuTorch(Recipe):
    """``quantize_(model, config_from_dict(json.load(file)["config"]), filter_fn=None)``."""

    name: ClassVar[str] = "executorch"
    summary: ClassVar[str] = "a recipe for ExecuTorch: torchao's FqnToConfig, JSON; not our codes"
    file: ClassVar[str] = "executorch.json"

    def refusal(self, layer: AssignedLayer) -> str:
        """See ``Recipe.refusal``."""
        if layer.kind != "linear" or layer.is_transposed:
            return f"torchao's schemes are those of nn.Linear, and this is a {layer.kind} layer"
        if str(layer.precision) in RUNS:
            return ""
        if layer.precision.activation.is_exact:
            return "XNNPACK computes garbage from weights alone, and says nothing"
        return f"XNNPACK runs {', '.join(RUNS)}"

    def text(self, layers: Sequence[AssignedLayer], note: str) -> str:
        """See ``Recipe.text``.

        Raises:
            MissingDependencyError: If ``mpq[torchao]`` is not installed.
        """
        torchao = quantization()
        from torchao.core.config import config_to_dict

        schemes = {layer.name: scheme(layer.precision) for layer in layers}
        config = config_to_dict(torchao.FqnToConfig(schemes))
        return json.dumps({"note": note, "config": config}, indent=1) + "\n"
