"""Folders of Hugging Face: a configuration, a tokenizer, weights in safetensors."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Self, final

import torch
from torch import Tensor, nn

from mpq._support.tensor_file import file_parts
from mpq.backends.half_precision import (
    DTYPE_NAMES,
    check_computed,
    parameter_dtype,
    with_scales_in,
)
from mpq.backends.layerwise import traced
from mpq.backends.target import Shipped, Target
from mpq.errors import MissingDependencyError, ModelError
from mpq.network.examples import Batch
from mpq.network.outputs import scored_tensor
from mpq.network.tensor_entries import tensor_entries
from mpq.quantization.numerics import Numerics

FORMAT: Final = {"format": "pt"}
"""What the header of a file of safetensors says of all its tensors."""


def require(package: str, extra: str) -> None:
    """Refuses where a package is missing.

    Raises:
        MissingDependencyError: Names the pip line.
    """
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingDependencyError(f"{package} is not installed: pip install 'mpq[{extra}]'")


def config_of(model: nn.Module, tool: str) -> dict[str, Any]:
    """The configuration of a network of transformers, as its ``config.json`` has it.

    Raises:
        ModelError: If the network is none of transformers, or computed numbers of it were rounded.
    """
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict") or not hasattr(config, "model_type"):
        raise ModelError(
            f"{tool} reads networks of transformers, which have a config; got a "
            f"{type(model).__name__}"
        )
    check_computed(model, tool)
    _check_own_weights(model, tool)
    assert config is not None
    found: dict[str, Any] = config.to_diff_dict()
    dtype = DTYPE_NAMES[parameter_dtype(model)]
    # What the loader makes of it: a base model and one with a head have one configuration.
    return {**found, "architectures": [type(model).__name__], "dtype": dtype}


def _check_own_weights(model: nn.Module, tool: str) -> None:
    """Refuses two linear layers with one weight; an embedding and a head may have one."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():  # each module once, under its first name
        weight = vars(module)["_parameters"].get("weight")
        if not isinstance(module, nn.Linear) or weight is None:
            continue
        other = names.setdefault(id(weight), name)
        if other != name:
            raise ModelError(
                f"{tool}: layers {other!r} and {name!r} share a weight, of which a file has one "
                "for each: give one a copy, layer.weight = nn.Parameter(layer.weight.clone())"
            )


@dataclass(frozen=True)
class FolderTarget(Target):
    """A target whose folder has the numbers that are not quantized in the network's own dtype.

    Args:
        dtype: Of the network's parameters; scales are stored in half precision where these are.
    """

    dtype: torch.dtype = torch.float32

    def check_network(self, model: nn.Module) -> None:
        """See ``Target.check_network``: a network of transformers."""
        config_of(model, self.name)

    def fitted(self, model: nn.Module) -> Self:
        """See ``Target.fitted``."""
        return replace(self, dtype=parameter_dtype(model))

    def header_bytes(self, folder: Path) -> int:
        """See ``Target.header_bytes``: of safetensors, whose length is its first number."""
        found = 0
        for file in folder.rglob("*.safetensors"):
            with file.open("rb") as opened:
                found += 8 + int.from_bytes(opened.read(8), "little")
        return found

    @property
    def arithmetic(self) -> Numerics:
        """See ``Target.arithmetic``."""
        return with_scales_in(self.numerics, self.dtype)


def write_folder(
    folder: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes ``config.json``, ``model.safetensors``, and what else the model came with."""
    text = json.dumps(config, indent=1, sort_keys=True, default=str) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.writelines(file_parts(tensor_entries(tensors), {**FORMAT, **(metadata or {})}))
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.save_pretrained(folder)
    _write_tokenizer(model, folder)


def _write_tokenizer(model: nn.Module, folder: Path) -> None:
    """The tokenizer of the folder that the model was loaded from, if it was and has one."""
    came_from = Path(str(getattr(model, "name_or_path", "") or ""))
    if not came_from.is_dir():
        return
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "chat_*"):
        for file in came_from.glob(pattern):
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())


def other_tensors(model: nn.Module, replaced: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the checkpoint besides those that are replaced; shared ones once."""
    seen: set[tuple[int, int]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.numel())
        if name not in replaced and place not in seen:
            seen.add(place)
            yield name, tensor


@final
@dataclass(frozen=True, eq=False)
class LoadedModule:
    """See ``mpq.backends.runtime.Loaded``: a network of transformers.

    Args:
        module: The network.
        weights: Layer name to ``[O, K]`` float32.
        kinds: Layer name to class.
        packages: Whose versions count.
    """

    module: nn.Module
    weights: Mapping[str, Tensor]
    kinds: Mapping[str, str]
    packages: tuple[str, ...] = ()

    @property
    def versions(self) -> dict[str, str]:
        """See ``Loaded``."""
        return {name: version(name) for name in ("torch", "transformers", *self.packages)}

    def traced(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Traceable.traced``."""
        return traced(self.module, partial(self.run, batch))

    def run(self, batch: Batch) -> Tensor:
        """See ``Loaded.run``."""
        return scored_tensor(self.module(*batch.args, **batch.kwargs))


def load_module(
    folder: Path, options: Mapping[str, Any] | None = None, ignored: str = "(?!)"
) -> nn.Module:
    """The network of a folder, as the class that ``config.json`` names.

    Args:
        folder: As ``write_folder`` made it.
        options: Of ``from_pretrained``; without ``dtype``, in float32.
        ignored: A regular expression of names that the network may have no place for.

    Raises:
        ModelError: If a tensor is missing, has no place, or another shape.
    """
    import transformers

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = getattr(transformers, config["architectures"][0])
    chosen = {"dtype": torch.float32, **(options or {})}
    # What a loader leaves out or makes up is a warning to it, and an error to us.
    module, info = kind.from_pretrained(folder, output_loading_info=True, **chosen)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = sorted(map(str, info.get(what) or ()))
        told = ", ".join([x for x in found if not re.fullmatch(ignored, x)][:3])
        if told:
            raise ModelError(f"transformers reports {what.replace('_', ' ')}: {told}")
    loaded: nn.Module = module.eval()
    return loaded


def check_linear_alone(shipped: Shipped, tool: str) -> None:
    """Refuses layers that are no modules of the network's own, or share a weight with others.

    Raises:
        ModelError: Names the layer, and what to do.
    """
    modules = dict(shipped.model.named_modules())
    places = Counter(id(vars(m)["_parameters"].get("weight")) for m in modules.values())
    for layer in shipped.quantized:
        found = modules.get(layer.name)
        if not isinstance(found, nn.Linear):
            raise ModelError(f"{tool}: {layer.name!r} is no nn.Linear, which transformers converts")
        if places[id(found.weight)] > 1:
            raise ModelError(
                f"{tool}: {layer.name!r} shares its weight with another layer (an embedding), and "
                "transformers shares no quantized ones; leave it as it came: --fix NAME=fp32"
            )
