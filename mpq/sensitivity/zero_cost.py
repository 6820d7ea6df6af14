"""Zero-cost proxies: one number per layer, from a gradient or from the weights alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpq.errors import InputError, UnknownNameError
from mpq.network.examples import Batch
from mpq.network.modules import weight_of
from mpq.network.network import Network
from mpq.network.targets import cross_entropy
from mpq.sensitivity._base import Sensitivity, SensitivityEstimator
from mpq.sensitivity.curvature.hessian_products import own_weights
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.formula import Formula
from mpq.sensitivity.importance import importance_table
from mpq.sensitivity.passes.backward_pass import Tap
from mpq.sensitivity.passes.differentiation import (
    check_reached,
    check_second_derivatives,
    differentiating,
)
from mpq.sensitivity.passes.labels import (
    check_labels,
    class_labels,
    labelled_passes,
    loss_gradient,
)
from mpq.sensitivity.passes.layer_response import response
from mpq.sensitivity.passes.weight_gradients import WholeGradients
from mpq.sensitivity.passes.weight_statistics import weight_statistics


@final
@dataclass(frozen=True)
class ZeroCost(SensitivityEstimator):
    r"""Relative rounding error, times a pruning criterion summed over the layer.

    With ``W`` the layer's weight and ``g`` the gradient of the mean cross-entropy over all
    calibration examples:

    =============  =========================================================================
    ``snip``       :math:`\sum_i |g_i W_i|`: Lee et al. (2019), arXiv:1810.02340
    ``plain``      :math:`|\sum_i g_i W_i|`
    ``grad-norm``  :math:`\lVert g \rVert_2`
    ``l2-norm``    :math:`\lVert W \rVert_2`, no data
    ``grasp``      :math:`\sum_i |W_i (H g)_i|`, ``H`` the Hessian of that mean over all layers'
                   weights: Wang et al. (2020), arXiv:2002.07376; two passes
    ``fisher``     :math:`\tfrac12 \mathrm{mean}_n \sum_k (\sum_t a_{nkt} \,
                   \partial L_n / \partial a_{nkt})^2` over the output's channels ``k`` and
                   places ``t``: Theis et al. (2018), arXiv:1801.05787
    ``synflow``    :math:`\sum_i |W_i \, \partial R / \partial W_i|` for the sum ``R`` of the
                   outputs of a network of absolute parameters that reads ones (ids as they
                   are): Tanaka et al. (2020), arXiv:2006.05467; the first batch's shapes only
    =============  =========================================================================

    The selection is that of Abdelfattah et al. (2021, arXiv:2101.08134) for architecture search,
    which EMQ (Dong et al. 2023, arXiv:2307.10554) compares, too. Like its proxies, ``formula`` is
    any expression over the weight ``w``, its gradient ``g``, the size ``a`` of what it meets and
    the diagonal ``h`` of its curvature (``mpq.sensitivity.formula``), such as ``sum(abs(g*w))``,
    which is ``snip``, or ``mean(h)*sum(square(w))``; ``mpq evolve-proxy`` finds one by what was
    measured.

    Departs from the papers in making a table of them (see ``importance_table``), in reading all
    calibration examples instead of one batch, in labels that are by default drawn from the network
    (then the expected ``g`` is 0, so that ``snip``, ``plain``, ``grad-norm`` and ``grasp`` see the
    noise that is left of it; take ``labels=targets`` where there are some), and in the absolute
    value of every product for ``grasp``. A layer's parameter that others share has the gradient of
    all its uses. The unit is ``relative``.

    Args:
        proxy: One of the above.
        labels: ``sampled`` or ``targets``; see ``loss_gradient``.
        seed: Seed of drawn labels.
        formula: Takes the place of the proxy; empty: none.

    Raises:
        UnknownNameError: If there is no such proxy, or ``labels`` is neither.
        InputError: If it is no formula, or there is a proxy beside it.
    """

    name: ClassVar[str] = "zero-cost"
    summary: ClassVar[str] = "rounding error x pruning criterion: snip, synflow, grasp, fisher, ..."

    proxy: str = "snip"
    labels: str = "sampled"
    seed: int = 0
    formula: str = ""

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if self.proxy not in PROXIES:
            raise UnknownNameError("proxy", self.proxy, PROXIES)
        if self.formula and self.proxy != ZeroCost.proxy:
            raise InputError(
                f"zero-cost is by a proxy or by a formula: leave out proxy={self.proxy} or formula="
            )
        if self.formula:
            Formula.parse(self.formula)

    def estimate(self, on: Estimation) -> Sensitivity:
        """See ``SensitivityEstimator.estimate``.

        Raises:
            DataError: If targets are wanted and there are none.
            InputError: If ``grasp`` is wanted of a network without classes, or a formula is 0 for
                every layer.
        """
        if self.formula:
            importance = self._by_formula(on)
        else:
            importance = PROXIES[self.proxy](_Examples(on, self.labels, self.seed))
        return Sensitivity(importance_table(on, importance, self.name))

    def _by_formula(self, on: Estimation) -> list[float]:
        formula = Formula.parse(self.formula)
        found = weight_statistics(on, formula.inputs, self.labels, self.seed)
        importance = [formula.importance(found[name]) for name in on.names]
        # Every assignment would lose as much as any other, and the answer be one by chance.
        if not any(importance):
            raise InputError(
                f"the formula {formula} is 0 for every layer, and tells none from another: give "
                "another one"
            )
        return importance


@dataclass(frozen=True)
class _Examples:
    """A network, and the labelled examples that gradients are taken for."""

    on: Estimation
    labels: str
    seed: int

    @property
    def network(self) -> Network:
        """The network that is estimated on."""
        return self.on.network

    def batches(self) -> Iterator[tuple[Batch, torch.Generator]]:
        """Batches on the network's device, with the generator of their labels."""
        # The same seed for every pass, so that both passes of ``grasp`` draw the same labels.
        generator = torch.Generator().manual_seed(self.seed)
        for batch in self.on.batches("zero-cost proxy"):
            yield batch, generator

    def weights(self) -> Iterator[Tensor]:
        """``[L]`` in float32."""
        return (self.network.weight(name).float() for name in self.on.names)

    def gradients(self) -> list[Tensor]:
        """``[L]`` gradients of the mean loss, in float32."""
        return self._mean(self._gradient)

    def hessian_products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """``[L]`` products of the mean loss's Hessian with ``[L]`` vectors, in float32."""

        def product(batch: Batch, generator: torch.Generator) -> list[Tensor]:
            return self._hessian_product(batch, generator, vectors)

        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            return self._mean(product)

    def _mean(self, of: Callable[[Batch, torch.Generator], list[Tensor]]) -> list[Tensor]:
        """Sums of each batch added up, over the number of examples."""
        sums, examples = [torch.zeros_like(weight) for weight in self.weights()], 0
        with own_weights(self.network), torch.enable_grad():
            for batch, generator in self.batches():
                with differentiating(self.network), WholeGradients():
                    gradients = of(batch, generator)
                for held, new in zip(sums, gradients, strict=True):
                    held += new
                examples += batch.size
        return [total / examples for total in sums]

    def _gradient(self, batch: Batch, generator: torch.Generator) -> list[Tensor]:
        outputs = self._outputs(batch)
        probe = loss_gradient(self.network, batch, self.labels, generator)(outputs.detach())
        return self._grad(outputs, probe)

    def _hessian_product(
        self, batch: Batch, generator: torch.Generator, vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        outputs = self._outputs(batch)
        classes, weights = class_labels(self.network, batch, outputs, self.labels, generator)
        nats = cross_entropy(classes, self.network.metric.logits(outputs))
        gradients = self._grad((nats * weights).sum(), None, create_graph=True)
        pairs = zip(gradients, vectors, strict=True)
        # H v is the gradient of <g, v> for a constant v.
        along = sum((gradient * vector).sum().to(outputs.device) for gradient, vector in pairs)
        assert isinstance(along, Tensor)
        return self._grad(along, None)

    def _outputs(self, batch: Batch) -> Tensor:
        outputs = self.network.outputs(batch)
        check_reached(outputs)
        return outputs

    def _grad(self, of: Tensor, probe: Tensor | None, create_graph: bool = False) -> list[Tensor]:
        """``[L]`` gradients with respect to the layers' weights, in float32; 0 where unused."""
        found = torch.autograd.grad(
            of,
            [weight_of(layer_module) for layer_module in self._layer_modules()],
            probe,
            create_graph=create_graph,
            materialize_grads=True,
        )
        if create_graph:
            check_second_derivatives(found)
        return [gradient.float() for gradient in found]

    def _layer_modules(self) -> list[nn.Module]:
        return [self.network.layer_module(name) for name in self.on.names]


def _snip(examples: _Examples) -> list[float]:
    pairs = zip(examples.gradients(), examples.weights(), strict=True)
    return [float((g * w).abs().sum()) for g, w in pairs]


def _plain(examples: _Examples) -> list[float]:
    pairs = zip(examples.gradients(), examples.weights(), strict=True)
    return [abs(float((g * w).sum())) for g, w in pairs]


def _gradient_norm(examples: _Examples) -> list[float]:
    return [float(g.norm()) for g in examples.gradients()]


def _weight_norm(examples: _Examples) -> list[float]:
    return [float(w.norm()) for w in examples.weights()]


def _grasp(examples: _Examples) -> list[float]:
    # The gradient is that of the mean over all data, and so must be complete before H meets it.
    products = examples.hessian_products(examples.gradients())
    pairs = zip(products, examples.weights(), strict=True)
    return [float((h * w).abs().sum()) for h, w in pairs]


def _fisher(examples: _Examples) -> list[float]:
    found = _ChannelSaliency(examples.on.names)
    passes = labelled_passes(examples.on, found, loss_gradient, examples.labels, examples.seed)
    count = sum(batch.size for batch in passes)
    return [0.5 * total / count for total in found.sums.values()]


class _ChannelSaliency:
    """Sums over examples and channels of squared products of output and gradient."""

    reads_inputs = False

    def __init__(self, names: Sequence[str]) -> None:
        self.sums = dict.fromkeys(names, 0.0)

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``; not called."""

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        product = response(tap.layer_module, x, None, tap.call) * g
        split = tap.by_example(product)
        # One row for the batch: squares of independent examples add up in the mean.
        rows = product[None] if split is None else split
        places = weight_of(tap.layer_module).ndim - 2  # axes that a convolution slides along
        channels = rows.movedim(-1 - places, 1).reshape(len(rows), rows.shape[-1 - places], -1)
        self.sums[tap.name] += float(channels.sum(dim=2).double().square().sum())


def _synflow(examples: _Examples) -> list[float]:
    # Layers that share a parameter have a variable each, as everywhere.
    with own_weights(examples.network):
        return _flows(examples)


def _flows(examples: _Examples) -> list[float]:
    network = examples.network
    batch = examples.on.data.first().to(network.device)
    ones = batch.map(lambda t: torch.ones_like(t).double() if t.is_floating_point() else t)
    # Products of absolute values over many layers overflow in float32.
    # By identity: a parameter of several modules that are no layers stays one variable.
    parameters: dict[int, Tensor] = {
        id(p): p.detach().abs().double() for p in network.module.parameters()
    }
    wanted = [parameters[id(weight_of(network.layer_module(x.name)))] for x in network.layers]
    for weight in wanted:
        weight.requires_grad_(True)
    # Statistics stay what they are, in float64 as well: torch does not mix the two dtypes.
    state = {id(b): b.double() for b in network.module.buffers() if b.is_floating_point()}
    replaced = _replaced(network.module, {**state, **parameters})
    with replaced, differentiating(network), torch.enable_grad(), WholeGradients():
        found = network.module(*ones.args, **ones.kwargs)
        total = network.metric.positions(found).sum()
        check_reached(total)
        gradients = torch.autograd.grad(total, wanted, materialize_grads=True)
    return [float((w.detach() * g).abs().sum()) for w, g in zip(wanted, gradients, strict=True)]


@contextmanager
def _replaced(module: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Other tensors take the place of parameters and buffers, by their ids."""
    # Not `functional_call`, which finds modules as attributes, where opened weights are tensors.
    places = [places for m in module.modules() for places in (m._parameters, m._buffers)]
    held = [(p, n, t) for p in places for n, t in p.items() if t is not None and id(t) in tensors]
    try:
        for place, name, tensor in held:
            place[name] = tensors[id(tensor)]  # type: ignore[assignment]
        yield
    finally:
        for place, name, tensor in held:
            place[name] = tensor  # type: ignore[assignment]


PROXIES: Mapping[str, Callable[[_Examples], list[float]]] = {
    "snip": _snip,
    "synflow": _synflow,
    "fisher": _fisher,
    "grasp": _grasp,
    "grad-norm": _gradient_norm,
    "plain": _plain,
    "l2-norm": _weight_norm,
}
"""From examples to ``[L]`` importances, by the name that ``proxy`` takes."""
