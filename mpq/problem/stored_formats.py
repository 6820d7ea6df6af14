"""What an assignment's JSON says of a tensor's format, for readers that do not have mpq."""

from typing import Any

from mpq.quantization.precision import TensorFormat


def format_to_dict(tensor_format: TensorFormat) -> dict[str, Any]:
    """The same as the precision's short spelling, in full."""
    return {
        "number": tensor_format.number.name,
        "bits": tensor_format.number.bits,
        "scheme": "symmetric" if tensor_format.symmetric else "affine",
        "granularity": tensor_format.granularity.value,
        "group_size": tensor_format.group_size,
        # Of few: files without it are read by earlier versions as well.
        **({} if tensor_format.scale is None else {"scale": tensor_format.scale}),
        **({"zero_point": "float"} if tensor_format.float_zero else {}),
        **({} if tensor_format.branch is None else {"branch": str(tensor_format.branch)}),
    }
