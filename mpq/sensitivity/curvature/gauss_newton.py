"""Traces of the Gauss-Newton matrix's blocks, from gradient norms of single examples."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from mpq.network.arguments import read_by
from mpq.network.divergence import random_signs
from mpq.network.examples import Batch
from mpq.network.metric import OutputMetric
from mpq.network.modules import hooks, weight_of
from mpq.network.network import Network
from mpq.network.outputs import position_weights
from mpq.network.own_forward import is_computed_again
from mpq.network.tracing import kind_of
from mpq.sensitivity.curvature.block_traces import Traces, TraceSums, variance_of_mean
from mpq.sensitivity.estimation import Estimation
from mpq.sensitivity.passes.backward_pass import Tap, tapped
from mpq.sensitivity.passes.differentiation import check_reached
from mpq.sensitivity.passes.streams import Streams
from mpq.sensitivity.passes.weight_gradients import CallGradients, PlainCall

_NUM_CONTRASTS = 4
"""Contrasts that are taken out of the random signs; more of them hardly lower the noise."""

_ENOUGH_DRAWS = 8
"""From so many on, their spread gives the standard error."""

_WORK_ELEMENTS = 2**22
"""Numbers (16 MiB in float32) that one step over examples may spread out."""


def gauss_newton_traces(
    on: Estimation, num_probes: int, generator: torch.Generator, with_inputs: bool = False
) -> Traces:
    r"""Traces of ``G``, the Hessian of the metric's divergence at the original network.

    .. math:: \mathrm{Tr}\, G_\ell = \mathrm{mean}_n \sum_k E \lVert g_{n \ell k} \rVert^2

    where ``g`` are the gradients of :math:`\langle u_{nk}, f_n \rangle` for ``K`` directions ``u``
    with :math:`\sum_k E[u_k u_k^T]` the Hessian of the divergence in the outputs (``Directions``).
    Norms are those of single examples, not of the batch, so that no noise comes from products of
    different examples' gradients, and how examples are split into batches does not matter. A layer
    that examples share (a relative position bias), or of which each reads a varying share (an
    expert), is the exception to both.

    Few random directions do not show their own variance. It is at most the mean of their squares,
    :math:`E \lVert g \rVert^4`, which then gives the standard error: it errs upwards.

    Args:
        on: ``L`` layers and the examples; targets are not used.
        num_probes: ``K`` backward passes per batch.
        generator: Draws the random signs.
        with_inputs: Whether traces of inputs are found, too; otherwise they are 0.

    Raises:
        GradientError: If the network cannot be differentiated.
    """
    sums = TraceSums(len(on.names))
    directions = Directions(on.network.metric, num_probes, generator)
    for batch in on.batches("Gauss-Newton traces"):
        fixed, drawn = _norms(on.network, batch, directions, with_inputs)
        # Fixed directions are exact parts of the trace; only the random ones are a sample.
        mean = fixed.sum(dim=0) + drawn.mean(dim=0)  # [2, L, N]
        is_known = len(drawn) >= _ENOUGH_DRAWS
        variance = variance_of_mean(drawn) if is_known else _bound(drawn)
        sums.add(mean.sum(dim=-1), variance.sum(dim=-1), batch.size)
    return sums.traces(num_probes)


def _bound(draws: Tensor) -> Tensor:
    """Of the variance of the mean over the first axis."""
    return draws.square().mean(dim=0) / len(draws)


@final
class Directions:
    r"""Directions in which a network's outputs are differentiated.

    With ``F`` the Hessian of the divergence in the outputs, the fixed ones ``c`` and the mean over
    the random ones ``u`` are such that :math:`\sum c c^T + E[u u^T] = F`.

    For the probabilities of a single position the fixed ones are the most likely class against all
    others, the next one against the rest, and so on: with :math:`q_j = 1 - p_1 - \dots - p_j`

    .. math:: c_{jj} = \sqrt{p_j q_j / q_{j-1}}, \quad
        c_{ij} = -p_i \sqrt{p_j / (q_j q_{j-1})}, \; i > j

    which is the Cholesky factor of ``diag(p) - p p^T`` (Tanabe and Sagae 1992, J. R. Stat. Soc. B
    54, 211). An example of which the network is not sure is mostly between two classes, and there
    the first column is all: random signs over the classes would make its squared gradient vary by
    as much as itself. What is left is drawn once, and from examples that are sure of the classes so
    far it is drawn seldom: with a probability :math:`\pi`, and then times :math:`\pi^{-1/2}`.
    Positions of a sequence, and other metrics, have random signs only, drawn ``num_probes`` times.

    Args:
        metric: The network's metric, whose curvature is taken.
        num_probes: How many in total.
        generator: Seeds the random signs.
    """

    def __init__(self, metric: OutputMetric, num_probes: int, generator: torch.Generator) -> None:
        self._metric = metric
        self._num_probes = num_probes
        # A stream for every sign that an example needs, so that batches of any size draw alike.
        self._streams = Streams.of(generator)
        self._left, self._examples = 0.0, 0

    def of(self, outputs: Tensor, weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Those of the next batch.

        Args:
            outputs: ``[N, P, C]``, detached.
            weights: ``[N, P]`` share of every position in its example's mean.

        Returns:
            Fixed and random ones, each ``[N, P, C]``; at least one is random.
        """
        p, streams = self._metric.fisher_probabilities(outputs), self._streams
        if p is None or outputs.shape[1] > 1:
            # A fixed direction over several positions at once would bring in products between
            # positions, which are 0 in the curvature. Signs of their own cancel them in the mean.
            probe = self._metric.probe
            return [], [probe(outputs, weights, streams[k]) for k in range(self._num_probes)]
        fixed = self._num_probes - 1
        columns, rest = _contrasts(p, max(fixed, _NUM_CONTRASTS))
        u = _remainder(rest, random_signs(rest, streams["remainder"]))
        for index, column in enumerate(columns[fixed:]):
            # One sign for the whole column: E[u u^T] gains c c^T and no product with other columns.
            u = u + column * random_signs(column[..., :1], streams[f"column {index}"])
        if fixed:
            # Sorted upwards, all but the last `fixed` are what the fixed columns leave.
            u = u * self._thinning(p.sort(dim=-1).values[..., :-fixed].sum(dim=-1, keepdim=True))
        # The root, because what is used of a direction is its square.
        scale = weights.sqrt().unsqueeze(-1)
        found = [(direction * scale).to(outputs.dtype) for direction in (*columns[:fixed], u)]
        return found[:-1], found[-1:]

    def _thinning(self, left: Tensor) -> Tensor:
        """0 or the root of one over the probability to be kept, for the probability left."""
        # An example is kept as often as it is above the mean of those up to it. The mean of its
        # batch would make what is kept depend on the split into batches.
        sums = left.cumsum(dim=0) + self._left
        counts = torch.arange(1, len(left) + 1, device=left.device).reshape(-1, 1, 1)
        means = sums / (counts + self._examples)
        self._left, self._examples = float(sums[-1]), self._examples + len(left)
        keep = _ratio(left, means).clamp_max(1.0)
        # On the CPU: a device's own generator would draw other numbers for the same seed.
        drawn = torch.rand(left.shape, generator=self._streams["thinning"], dtype=torch.float64)
        # Where `keep` is 0 its root is infinite, but no number drawn is below 0.
        return torch.where(drawn.to(left.device) < keep, keep.rsqrt(), torch.zeros_like(keep))


def _contrasts(p: Tensor, count: int) -> tuple[list[Tensor], Tensor]:
    """Columns ``[..., C]`` of the most likely classes, and the probabilities without them."""
    columns, mass = [], torch.ones_like(p[..., :1])
    # diag(p) - p p^T has rank C - 1: the last column of its factor is 0.
    for _ in range(min(count, p.shape[-1] - 1)):
        top = p.argmax(dim=-1, keepdim=True)
        likely = p.gather(-1, top)
        rest = p.scatter(-1, top, 0.0)
        left = rest.sum(dim=-1, keepdim=True)  # not 1 minus p: a sure network's would cancel
        against = _ratio(likely, mass * left).sqrt()
        columns.append((-rest * against).scatter(-1, top, (_ratio(likely, mass) * left).sqrt()))
        p, mass = rest, left
    return columns, p


def _remainder(p: Tensor, signs: Tensor) -> Tensor:
    """``u`` with ``E[u u^T] = diag(p) - p p^T / sum(p)`` for the classes that are left."""
    # This is the Schur complement that the columns so far leave of diag(p) - p p^T.
    root = p.sqrt()
    mass = p.sum(dim=-1, keepdim=True)
    return root * signs - _ratio(p, mass) * (root * signs).sum(dim=-1, keepdim=True)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """0 where there is no whole."""
    return torch.where(whole > 0, part / whole, torch.zeros_like(part))


def _norms(
    network: Network,
    batch: Batch,
    directions: Directions,
    with_inputs: bool,
) -> tuple[Tensor, Tensor]:
    """Squared norms for the fixed and the random directions, ``[., 2, L, N]`` each."""
    reader = _SquaredNorms(network, batch.size, with_inputs)
    with tapped(network, batch.size, reader), reader.counting(), torch.enable_grad():
        outputs = network.outputs(batch)
        check_reached(outputs)
        shares = position_weights(batch, outputs)
        fixed, random = directions.of(outputs.detach(), shares)
        found = []
        for index, direction in enumerate((*fixed, *random), start=1):
            # Examples that were thinned out have gradients of 0; their norms need no work.
            reader.examples = direction.flatten(1).any(dim=1).nonzero().flatten().cpu()
            outputs.backward(direction, retain_graph=index < len(fixed) + len(random))
            found.append(reader.take())
    norms = torch.stack(found)  # [K, 2, L, N]
    return norms[: len(fixed)], norms[len(fixed) :]


class _SquaredNorms:
    """Reads one backward pass after the other; each layer's norms are known when it is over."""

    def __init__(self, network: Network, batch_size: int, reads_inputs: bool) -> None:
        self._network = network
        self._rows = {layer.name: row for row, layer in enumerate(network.layers)}
        self._reads_inputs = reads_inputs
        self._calls = dict.fromkeys(self._rows, 0)  # of each layer
        self._waiting: dict[str, list[tuple[Tap, Tensor, Tensor]]] = {}
        self._elements = torch.zeros(len(self._rows), 1, dtype=torch.float64)
        self._found = torch.zeros(2, len(self._rows), batch_size, dtype=torch.float64)
        self.examples = torch.arange(batch_size)  # those whose gradients are not 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts in a forward pass how often each layer is called."""

        def count(
            name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            # Counted in each batch's own pass: how often an expert is called depends on the batch.
            # A call with nothing is not read.
            read = read_by(args, kwargs, output)
            self._calls[name] += read.numel() > 0 and not is_computed_again()

        layers = self._network.layers
        handles = [
            self._network.layer_module(x.name).register_forward_hook(
                partial(count, x.name), with_kwargs=True
            )
            for x in layers
        ]
        with hooks(handles):
            yield

    @property
    def reads_inputs(self) -> bool:
        """Where traces of inputs are wanted."""
        return self._reads_inputs

    def read_input(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``."""
        row = self._rows[tap.name]
        self._elements[row] += x.numel() / tap.num_examples
        self._found[1, row] += _by_example_or_all(tap, g.detach().double().square())

    def read_output(self, tap: Tap, x: Tensor, g: Tensor) -> None:
        """See ``GradientReader``. Gradients of a layer's calls are summed, then squared."""
        # Not those of other layers that use the same parameter: a row is what one layer does alone.
        waiting = self._waiting.setdefault(tap.name, [])
        waiting.append((tap, x, g))
        if len(waiting) == self._calls[tap.name]:
            self._close(tap.name)

    def _close(self, name: str) -> None:
        used = self._waiting.pop(name)
        self._found[0, self._rows[name]] = _norms_of_sum(used, self.examples)

    def take(self) -> Tensor:
        """``[2, L, N]`` of the backward pass that is over."""
        for name in list(self._waiting):  # a call whose output nobody uses is never read
            self._close(name)
        self._found[1] = _ratio(self._found[1], self._elements)
        found, self._found = self._found, torch.zeros_like(self._found)
        # Every backward pass counts the inputs again.
        self._elements.zero_()
        return found


def _by_example_or_all(tap: Tap, squares: Tensor) -> Tensor:
    """``[N]`` float64 on the CPU; what examples share stands at the first of them."""
    split = tap.by_example(squares)
    if split is not None:
        return split.flatten(1).sum(dim=1).cpu()
    return _first(squares.sum(), tap.num_examples)


def _first(value: Tensor, num_examples: int) -> Tensor:
    """``[N]`` with everything at the first example."""
    found = torch.zeros(num_examples, dtype=torch.float64)
    # Which example holds it makes no difference: means and variances are summed over them.
    found[0] = value.cpu()
    return found


def _norms_of_sum(used: list[tuple[Tap, Tensor, Tensor]], examples: Tensor) -> Tensor:
    """``[N]`` squared norms of a weight's gradient, summed over its calls, for some examples."""
    num_examples = used[0][0].num_examples
    calls = [tap.weight_gradients(x, _at_least_float(g)) for tap, x, g in used]
    # The norm of a sum takes every summand by example: one that cannot be split decides for all.
    if not all(call.is_split for call in calls):
        whole = _sum([call.whole() for call in calls])
        return _first(whole.double().square().sum(), num_examples)
    found = torch.zeros(num_examples, dtype=torch.float64)
    # All uses of some examples are held at once, to be added up; the widest sets the pace.
    step = max(1, _WORK_ELEMENTS // max(map(_spread, calls)))
    for start in range(0, len(examples), step):
        some = examples[start : start + step]
        found[some] = _squared_norms(calls, some).double().cpu()
    return found


def _squared_norms(calls: Sequence[CallGradients], examples: Tensor) -> Tensor:
    """``[N]`` for some examples."""
    # The shortcut squares one use alone; between several, their products count, too.
    if len(calls) == 1 and isinstance(calls[0], PlainCall):
        use = (calls[0].layer_module, *calls[0].part(examples))
        if _has_few_positions(*use):
            return _gram_norms(*use)
    rows = _sum([call.rows(examples) for call in calls])
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1).square()
    return norms


def _has_few_positions(layer_module: nn.Module, x: Tensor, g: Tensor) -> bool:
    """Whether products between positions are fewer than weights."""
    if kind_of(layer_module) not in ("linear", "embedding"):
        return False
    positions = g[0].numel() // g.shape[-1]
    # T^2 (I + O) multiplications for the products of positions, T I O for the gradient itself:
    # compared after division by T.
    inner = positions * (g.shape[-1] + (x.shape[-1] if kind_of(layer_module) == "linear" else 1))
    return inner <= weight_of(layer_module).numel()


def _gram_norms(layer_module: nn.Module, x: Tensor, g: Tensor) -> Tensor:
    r""":math:`\lVert \sum_t g_t x_t^T \rVert^2 = \sum_{ts} (g_t \cdot g_s)(x_t \cdot x_s)`."""
    g = g.reshape(len(g), -1, g.shape[-1])  # [N, T, O]
    if kind_of(layer_module) == "embedding":
        ids = x.reshape(len(x), -1)
        # An embedding is a linear layer that reads one-hot rows, whose product is 1 where ids
        # agree.
        met = (ids[:, :, None] == ids[:, None, :]).to(g.dtype)  # [N, T, T]
    else:
        x = x.reshape(len(x), -1, x.shape[-1]).to(g.dtype)
        met = x @ x.transpose(1, 2)
    # A small norm is a difference of large products, which rounding can leave below 0.
    return (met * (g @ g.transpose(1, 2))).sum(dim=(1, 2)).clamp_min(0.0)


def _spread(call: CallGradients) -> int:
    """Numbers that one example's gradient takes while it is computed."""
    return max(weight_of(call.layer_module).numel(), call.spread, 1)


def _sum(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).sum(dim=0) if len(tensors) > 1 else tensors[0]


def _at_least_float(g: Tensor) -> Tensor:
    # The squares of small gradients underflow in float16, and have few digits in bfloat16.
    return g if g.dtype == torch.float64 else g.float()
