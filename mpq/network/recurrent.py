"""Recurrent networks and cells with their projections as layers of their own.

torch computes a whole sequence inside one function, never calling a module, so that nothing can
observe or quantize the weights. Here each is an ``nn.Linear`` that is called.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from mpq.network.opened import Opened, Stored, Views, linear, open_as

State = tuple[Tensor, ...]
"""Hidden state, and cell state of an LSTM; ``[N, H]`` each."""


def _lstm(read: Tensor, kept: Tensor, state: State) -> State:
    i, f, g, o = (read + kept).chunk(4, dim=-1)
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru(read: Tensor, kept: Tensor, state: State) -> State:
    pairs = zip(read.chunk(3, dim=-1), kept.chunk(3, dim=-1), strict=True)
    (r, r_kept), (z, z_kept), (n, n_kept) = pairs
    # The reset gate is after the product with the state: torch's variant, and cuDNN's.
    new = (n + (r + r_kept).sigmoid() * n_kept).tanh()
    return (new + (z + z_kept).sigmoid() * (state[0] - new),)


def _tanh(read: Tensor, kept: Tensor, _: State) -> State:
    return ((read + kept).tanh(),)


def _relu(read: Tensor, kept: Tensor, _: State) -> State:
    return ((read + kept).relu(),)


STEPS: Final[dict[str, Callable[[Tensor, Tensor, State], State]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _tanh,
    "RNN_RELU": _relu,
}
"""By torch's ``mode``: the next state, from the projections of input and state and the state."""


class OpenRecurrent(Opened):
    """An ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` through linear layers.

    For layer 0 they are ``<name>.ih_l0``, which reads the whole sequence at once, ``.hh_l0``, which
    reads the state in each step, and, with ``proj_size``, ``.hr_l0``, which gives the state; the
    other direction's end in ``_reverse``.

    Packed sequences are filled up to the longest one: steps beyond a sequence's end are computed,
    and change nothing.
    """

    mode: str
    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    hidden_size: int
    proj_size: int

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - torch's name
        """As ``nn.LSTM.forward``, ``nn.GRU.forward`` or ``nn.RNN.forward``."""
        if isinstance(input, PackedSequence):
            x, lengths = pad_packed_sequence(input, self.batch_first)
            output, state = self._run(x, self._parts(hx), lengths.to(x.device))
            return self._packed(output, input), self._whole(state)
        if input.dim() not in (2, 3):
            raise ValueError(f"{self.mode}: expected an input of 2 or 3 axes, got {input.dim()}")
        if input.dim() == 3:
            output, state = self._run(input, self._parts(hx))
            return output, self._whole(state)
        axis = 0 if self.batch_first else 1
        parts = self._parts(hx)
        given = None if parts is None else tuple(part.unsqueeze(1) for part in parts)
        output, state = self._run(input.unsqueeze(axis), given)
        return output.squeeze(axis), self._whole(tuple(part.squeeze(1) for part in state))

    def _parts(self, hx: Any) -> State | None:
        return hx if hx is None or self.mode == "LSTM" else (hx,)

    def _whole(self, state: State) -> State | Tensor:
        return state if self.mode == "LSTM" else state[0]

    def _packed(self, output: Tensor, like: PackedSequence) -> PackedSequence:
        if like.sorted_indices is not None:
            output = output.index_select(0 if self.batch_first else 1, like.sorted_indices)
        # How many sequences go on at each step, turned into how many steps each has.
        steps = torch.arange(int(like.batch_sizes[0]))
        lengths = (steps[:, None] < like.batch_sizes).sum(dim=1)
        data = pack_padded_sequence(output, lengths, self.batch_first).data
        return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """All layers; states are ``[L * directions, N, H]``."""
        state = self._zeros(x) if state is None else state
        # torch's own, so that a wrong shape is called by torch's words.
        self.check_forward_args(x, state if self.mode == "LSTM" else state[0], None)
        ends = ["", "_reverse"] if self.bidirectional else [""]
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for end in ends:
                first = tuple(part[len(finals)] for part in state)
                output, final = self._sweep(x, f"l{layer}{end}", first, lengths)
                outputs.append(output)
                finals.append(final)
            x = torch.cat(outputs, dim=-1) if self.bidirectional else outputs[0]
        return x, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))

    def _zeros(self, x: Tensor) -> State:
        count = self.num_layers * (2 if self.bidirectional else 1)
        batch = x.shape[0 if self.batch_first else 1]
        widths = [self.proj_size or self.hidden_size]
        if self.mode == "LSTM":
            widths.append(self.hidden_size)
        return tuple(x.new_zeros(count, batch, width) for width in widths)

    def _sweep(
        self, x: Tensor, name: str, state: State, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """One layer in one direction: its outputs, and its last state."""
        axis = 1 if self.batch_first else 0
        read = self.get_submodule(f"ih_{name}")(x).unbind(axis)
        outputs: dict[int, Tensor] = {}
        for step in sorted(range(len(read)), reverse=name.endswith("_reverse")):
            new = self._step(name, read[step], state)
            if lengths is not None:
                goes_on = (step < lengths)[:, None]
                pairs = zip(new, state, strict=True)
                new = tuple(torch.where(goes_on, after, before) for after, before in pairs)
            outputs[step], state = new[0], new
        return torch.stack([outputs[step] for step in range(len(read))], dim=axis), state

    def _step(self, name: str, read: Tensor, state: State) -> State:
        kept = self.get_submodule(f"hh_{name}")(state[0])
        hidden, *cell = STEPS[self.mode](read, kept, state)
        if self.proj_size:
            hidden = self.get_submodule(f"hr_{name}")(hidden)
        return (hidden, *cell)

    @property
    def _flat_weights(self) -> list[Tensor]:
        # Read by `check_forward_args`, and by users who initialise weights.
        return [self.__getattr__(name) for name in self._stored]

    def flatten_parameters(self) -> None:
        """Nothing: what torch's own arranges is the memory of a kernel that is not called."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Past `nn.RNNBase`, which gathers its parameters anew.
        return nn.Module._apply(self, fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """As of a plain module, for the same reason."""
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As of a plain module, for the same reason."""
        nn.Module.__setstate__(self, state)


class OpenCell(Opened):
    """An ``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell`` through linear layers.

    They are ``<name>.ih``, which reads the input, and ``<name>.hh``, which reads the state.
    """

    ih: nn.Linear
    hh: nn.Linear
    hidden_size: int

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # noqa: A002 - torch's name
        """As ``nn.LSTMCell.forward``, ``nn.GRUCell.forward`` or ``nn.RNNCell.forward``."""
        mode = _mode_of(self)
        is_batched = _check_axes(mode, input, hx)
        x = input if is_batched else input.unsqueeze(0)
        if hx is None:
            state = tuple(x.new_zeros(len(x), self.hidden_size) for _ in range(_parts(mode)))
        else:
            given = hx if mode == "LSTM" else (hx,)
            state = tuple(part if is_batched else part.unsqueeze(0) for part in given)
        new = STEPS[mode](self.ih(x), self.hh(state[0]), state)
        found = new if is_batched else tuple(part.squeeze(0) for part in new)
        return found if mode == "LSTM" else found[0]


def _parts(mode: str) -> int:
    return 2 if mode == "LSTM" else 1


def _mode_of(cell: nn.Module) -> str:
    if isinstance(cell, nn.RNNCell):
        return f"RNN_{cell.nonlinearity.upper()}"
    return "LSTM" if isinstance(cell, nn.LSTMCell) else "GRU"


def _check_axes(mode: str, x: Tensor, hx: Any) -> bool:
    """Whether a cell's input has a batch axis."""
    given = [x, *(() if hx is None else hx if mode == "LSTM" else (hx,))]
    if any(part.dim() != x.dim() for part in given) or x.dim() not in (1, 2):
        axes = ", ".join(str(part.dim()) for part in given)
        raise ValueError(f"a cell ({mode}) takes an input and states of 1 or 2 axes; got {axes}")
    return x.dim() == 2


def open_recurrent(module: nn.RNNBase, _: Views) -> None:
    """Makes a recurrent network an ``OpenRecurrent``, in place, unless a weight is computed."""
    names = list(module._flat_weights_names)
    ends = [name.removeprefix("weight_ih") for name in names if name.startswith("weight_ih")]
    _open(module, OpenRecurrent, names, ends)
    if isinstance(module, OpenRecurrent):
        # Kept up to date by nobody from here on; the first is a property now.
        for name in ("_flat_weights", "_flat_weight_refs"):
            module.__dict__.pop(name, None)


def open_cell(module: nn.RNNCellBase, _: Views) -> None:
    """Makes a recurrent cell an ``OpenCell``, in place, unless a weight is computed."""
    biases = ["bias_ih", "bias_hh"] if module.bias else []
    _open(module, OpenCell, ["weight_ih", "weight_hh", *biases], [""])


def _open(
    module: nn.Module, opened_as: type[Opened], names: Sequence[str], ends: Sequence[str]
) -> None:
    """Opens a module whose parameters are ``weight_ih``, ``bias_ih`` and so on, plus an end."""
    own = {name: p for name in names if (p := module._parameters.get(name)) is not None}
    # One that is missing there is computed from others: weight_norm, a dropped-out weight.
    if len(own) < len(names):
        return
    layers, stored = {}, {}
    for part in (f"{kind}{end}" for end in ends for kind in ("ih", "hh", "hr")):
        weight, bias = own.get(f"weight_{part}"), own.get(f"bias_{part}")
        if weight is not None:
            layers[part] = linear(weight, bias)
    for name, parameter in own.items():
        what, part = name.split("_", 1)
        stored[name] = Stored((f"{part}.{what}",), tuple(parameter.shape))
    open_as(module, opened_as, layers, stored)
