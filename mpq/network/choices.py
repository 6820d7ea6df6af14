"""Which layers decide something: what they say is compared, ranked or rounded, not only computed.

A router whose best expert changes moves the output by a jump that no gradient tells of.
"""

from typing import Any, Final, final

from torch import Tensor, int64
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from mpq.network.arguments import tensors_in

_CHOOSING: Final = frozenset(
    (
        "topk", "argmax", "argmin", "sort", "msort", "argsort", "multinomial", "bucketize",
        "searchsorted", "unique", "nonzero", "round", "sign", "sgn", "floor", "ceil", "trunc",
        "heaviside", "gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal",
        "less_equal", "__gt__", "__lt__", "__ge__", "__le__", "__eq__", "__ne__",
    )
)  # fmt: skip
"""Names of torch functions and methods whose answer jumps where its input hardly moves. Not maxima,
which pooling and every softmax take: their values do not jump. Where they are does: see
``_WHERE``."""
_WHERE: Final = frozenset(("max", "min", "median", "nanmedian", "mode", "kthvalue"))
"""Functions that return values and where these are: whoever reads the latter chooses by it."""


@final
class Choices(TorchFunctionMode):
    """Follows what layers return until another layer has read it, or something chooses by it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: set[str] = set()
        """Layers that something chose by so far."""
        # Weakly: what a network has let go of need not be followed, nor held.
        self._said_by: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._where: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def says(self, layer: str, output: Any) -> None:
        """From here on an output is this layer's, whatever it was made of."""
        if isinstance(output, Tensor):
            self._said_by[output] = frozenset((layer,))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and passes on whose its result is."""
        kwargs = kwargs or {}
        given, name = [*args, *kwargs.values()], getattr(func, "__name__", "")
        said = self._of(given)
        if name != "__get__":  # a shape, a device
            for index in _integers(given):
                self.layers |= self._where.get(index, frozenset())
        result = func(*args, **kwargs)
        if said:
            if name in _CHOOSING:
                self.layers |= said
            for index in _integers(result) if name in _WHERE else ():
                self._where[index] = said
            for tensor in _floats(result):
                self._said_by[tensor] = said
        return result

    def _of(self, values: Any) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for tensor in _floats(values):
            found |= self._said_by.get(tensor, frozenset())
        return found


def _floats(value: Any) -> list[Tensor]:
    """Tensors of floats in a value, or in the tuples and lists it holds."""
    # Indices and masks are the choice itself: whoever reads them is no further choice.
    return [tensor for tensor in tensors_in(value) if tensor.is_floating_point()]


def _integers(value: Any) -> list[Tensor]:
    """Tensors of indices in a value, as ``_floats``."""
    return [tensor for tensor in tensors_in(value) if tensor.dtype == int64]
