"""Which modules are opened into layers, and how."""

from collections.abc import Callable
from typing import Final

from torch import nn

from mpq.network.attention import open_attention
from mpq.network.bag import open_bag
from mpq.network.bilinear import open_bilinear
from mpq.network.opened import Views, computes_as
from mpq.network.recurrent import open_cell, open_recurrent

_OPENERS: Final[dict[type[nn.Module], Callable[..., None]]] = {
    nn.MultiheadAttention: open_attention,
    nn.RNN: open_recurrent,
    nn.LSTM: open_recurrent,
    nn.GRU: open_recurrent,
    nn.RNNCell: open_cell,
    nn.LSTMCell: open_cell,
    nn.GRUCell: open_cell,
    nn.EmbeddingBag: open_bag,
    nn.Bilinear: open_bilinear,
}


def open_layers(model: nn.Module) -> nn.Module:
    """Opens, in place, every module that uses its weights without calling a layer.

    These are attention (``OpenAttention``), recurrent networks and cells (``OpenRecurrent``,
    ``OpenCell``), ``nn.EmbeddingBag`` (``OpenBag``) and ``nn.Bilinear`` (``OpenBilinear``), and
    subclasses that compute the same. Left closed is what computes something else: a subclass with a
    ``forward`` of its own, or parameters that are computed from others (``weight_norm``).

    Returns:
        The model.
    """
    views = Views()
    # A list, because the modules get children under the loop.
    for module in list(model.modules()):
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # the fused path reads the parameters directly
        for closed, open_one in _OPENERS.items():
            if computes_as(module, closed):
                open_one(module, views)
    return model
