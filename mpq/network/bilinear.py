"""``nn.Bilinear`` as a linear layer."""

from torch import Tensor, nn

from mpq.network.opened import Opened, Stored, Views, linear, open_as


class OpenBilinear(Opened):
    r"""An ``nn.Bilinear`` through one linear layer, ``<name>.product``.

    .. math:: y_o = x_1^T A_o x_2 + b_o = \langle A_o, x_1 x_2^T \rangle + b_o

    so that the layer reads the products of both inputs' numbers, ``[..., I1 * I2]``, and its weight
    is ``[O, I1 * I2]``. Where inputs are rounded, it is these products.
    """

    product: nn.Linear

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """As ``nn.Bilinear.forward``."""
        products = input1.unsqueeze(-1) * input2.unsqueeze(-2)  # [..., I1, I2]
        y: Tensor = self.product(products.flatten(-2))
        return y


def open_bilinear(module: nn.Bilinear, views: Views) -> None:
    """Makes an ``nn.Bilinear`` an ``OpenBilinear``, in place, unless its weight is computed."""
    weight, bias = (module._parameters.get(name) for name in ("weight", "bias"))
    if weight is None or (bias is None) != (module.bias is None):
        return
    shape = tuple(weight.shape)
    (rows,) = views.of(weight, 1, (shape[0], shape[1] * shape[2]))
    stored = {"weight": Stored(("product.weight",), shape)}
    if bias is not None:
        stored["bias"] = Stored(("product.bias",), tuple(bias.shape))
    open_as(module, OpenBilinear, {"product": linear(rows, bias)}, stored)
