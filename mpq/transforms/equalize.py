"""Cross-layer equalization: neighbouring layers get the same range in every channel between."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mpq._support.arrays import Array
from mpq.errors import InputError
from mpq.network.reparametrization import Scaling
from mpq.network.reparametrized import changed
from mpq.transforms._base import Found, Transform, Transforming
from mpq.transforms.factors import balanced
from mpq.transforms.layer_inputs import magnitudes
from mpq.transforms.sites import Site, Sites, largest_by_label, merged


@final
@dataclass(frozen=True)
class Equalize(Transform):
    r"""Equal ranges of a channel in the layer that makes it and in those that read it.

    .. math:: s_c = \sqrt{r^{(1)}_c / r^{(2)}_c}, \quad w^{(1)}_c / s_c, \quad w^{(2)}_c \, s_c

    with the largest magnitudes :math:`r` of the weights that make and that read channel ``c``.
    Between the layers only what commutes with a positive factor: ReLU and its leaky kinds, pooling,
    attention's sums over values, a product with another tensor; a BatchNorm in between is a part of
    the first layer. ReLU6 and the like do not commute, and are left as they are: the paper replaces
    them, which would be another network. Chains of layers are gone through until the factors stay
    (Nagel et al. 2019, arXiv:1906.04721).

    Args:
        sweeps: Times that all layers are gone through at most.
    """

    name: ClassVar[str] = "equalize"
    summary: ClassVar[str] = "equal ranges of a channel in the layers before and behind it"

    sweeps: int = 20

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise InputError(f"{self.name} needs at least one sweep; got {self.sweeps}")

    def found(self, on: Transforming) -> Found:
        """See ``Transform.found``; takes a pass over two examples."""
        sites = Sites.of(on.module, on.traced)
        pairs = [site for site in sites.sites if site.is_layer or site.before]
        parameters = {name: p.detach() for name, p in on.module.named_parameters()}
        changes: tuple[Scaling, ...] = ()
        for _ in range(self.sweeps):
            moved = 0.0
            for site in pairs:
                now = _Weights(on.module, parameters, changes)
                factors = _factors(site, now)
                moved = max(moved, float(np.abs(np.log(factors)).max()))
                changes = merged([*changes, *site.changes(factors)])
            if moved < 1e-3:
                break
        read = {reader.weight.parameter for site in pairs for reader in site.readers}
        no_layer = "reads channels that a normalization makes, and no layer"
        left = {name: no_layer for name in sites.readers if name not in read}
        return Found(changes, len(pairs), {**sites.why_not, **left})


@final
@dataclass(frozen=True, eq=False)
class _Weights:
    """Parameters with the changes so far."""

    module: nn.Module
    parameters: Mapping[str, Tensor]
    changes: tuple[Scaling, ...]

    def largest(self, name: str, axis: int) -> Array:
        """``[n]`` the largest magnitude of every entry of an axis."""
        own = (change for change in self.changes if change.parameter == name)
        values = changed(self.parameters[name].double(), own)
        return magnitudes(values, axis)


def _factors(site: Site, now: _Weights) -> Array:
    """``[n]``: the square root of the ranges' quotient; 1 where one of them is 0."""
    member = site.members[0]
    if site.before:
        # The BatchNorm becomes a part of the kernel before it, with its scale.
        made = _norm_scale(site, now) * now.largest(site.before, 0)
    else:
        made = largest_by_label(
            now.largest(member.parameter, member.axis), member.labels, site.size
        )
    read = np.zeros(site.size)
    for reader in site.readers:
        along = reader.weight
        ranges = now.largest(along.parameter, along.axis)
        read = np.maximum(read, largest_by_label(ranges, along.labels, site.size))
    return balanced(made, read, site.is_free)


def _norm_scale(site: Site, now: _Weights) -> Array:
    name = site.name.rpartition(".")[0]
    norm = now.module.get_submodule(name)
    scale = now.largest(site.name, 0)
    if not isinstance(norm, _BatchNorm) or norm.running_var is None:
        return scale
    deviation: Array = (norm.running_var.double() + norm.eps).sqrt().cpu().numpy()
    return scale / deviation
