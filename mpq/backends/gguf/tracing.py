"""What layers give in llama.cpp, which calls back while it computes its graph.

The wheel has no door to that: its library is asked by ``ctypes``. Where the library's structures
are not those that are known here, nothing is traced.
"""

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from mpq.errors import ModelError

BYTES: Final = 1024
"""More than any of the structures that are passed as they come."""
MINUS_ONE: Final = int(np.float32(-1.0).view(np.int32))
DEFAULTS: Final = (
    *(-1, -1, -1, -1),  # rope scaling, pooling, attention, flash attention: to be chosen
    *(0, 0, MINUS_ONE, MINUS_ONE, MINUS_ONE, MINUS_ONE, 0, MINUS_ONE),  # rope, YaRN, unused
    *(0, 0, 0, 0),  # what is called back, and with what
    *(1, 1),  # fp16 keys and values
    *(0, 0, 0, 0),
)  # fmt: skip
"""A part of the settings of a context as they come, as 32-bit numbers: by it they are found."""
FLASH, CALLBACK, KEYS = 3, 12, 16
"""Places in it."""
F32: Final = 0
"""ggml's number of the type, and llama.cpp's of flash attention that is off."""


class Opaque(ctypes.Structure):
    """A structure that is passed on, of which no more is known than that it is smaller."""

    _fields_ = (("numbers", ctypes.c_int32 * (BYTES // 4)),)


def _tensor_type() -> type[ctypes.Structure]:
    """``ggml_tensor``, whose sizes the wheel tells."""
    import xllamacpp

    class GgmlTensor(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("buffer", ctypes.c_void_p),
            ("ne", ctypes.c_int64 * xllamacpp.GGML_MAX_DIMS),
            ("nb", ctypes.c_size_t * xllamacpp.GGML_MAX_DIMS),
            ("op", ctypes.c_int),
            ("op_params", ctypes.c_int32 * (xllamacpp.GGML_MAX_OP_PARAMS // 4)),
            ("flags", ctypes.c_int32),
            ("src", ctypes.c_void_p * xllamacpp.GGML_MAX_SRC),
            ("view_src", ctypes.c_void_p),
            ("view_offs", ctypes.c_size_t),
            ("data", ctypes.c_void_p),
            ("name", ctypes.c_char * xllamacpp.GGML_MAX_NAME),
        )

    return GgmlTensor


Told = Callable[[str, str, Tensor, Tensor | None], None]
"""Is given an operation, its parameter's name, what it makes, and what it reads where it is known.
"""


def run_traced(file: Path, tokens: Sequence[int], told: Told) -> None:
    """Runs a prompt, and tells what every operation makes that reads a parameter.

    Args:
        file: As llama.cpp loads it.
        tokens: Of the prompt.
        told: Is not called where the library is another one than is known here.

    Raises:
        ModelError: If llama.cpp does not load or run it.
    """
    library = _library()
    settings = library.llama_context_default_params()
    place = _place_of(settings)
    if place is None:
        return
    watched = _Watched(library, told)
    _set(settings, place, watched.callback, len(tokens))
    library.llama_backend_init()
    model = library.llama_model_load_from_file(
        str(file).encode(), library.llama_model_default_params()
    )
    context = library.llama_init_from_model(model, settings) if model else None
    if not context:
        raise ModelError("gguf: llama.cpp loads the file no second time, to look at its layers")
    try:
        threads = torch.get_num_threads()
        library.llama_set_n_threads(context, threads, threads)
        # All positions, and not the last alone.
        library.llama_set_embeddings(context, True)
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        if library.llama_decode(context, library.llama_batch_get_one(ids, len(tokens))):
            raise ModelError("gguf: llama.cpp does not run the file to look at its layers")
    finally:
        library.llama_free(context)
        library.llama_model_free(model)


def _library() -> Any:
    """llama.cpp, as the wheel has loaded it already."""
    from xllamacpp import xllamacpp

    library = ctypes.CDLL(xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_context_default_params", Opaque, []),
        ("llama_model_default_params", Opaque, []),
        ("llama_batch_get_one", Opaque, [pointer, number]),
        ("llama_backend_init", None, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Opaque]),
        ("llama_init_from_model", pointer, [pointer, Opaque]),
        ("llama_set_n_threads", None, [pointer, number, number]),
        ("llama_set_embeddings", None, [pointer, ctypes.c_bool]),
        ("llama_decode", number, [pointer, Opaque]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("ggml_get_name", pointer, [pointer]),
        ("ggml_op_desc", ctypes.c_char_p, [pointer]),
        ("ggml_is_contiguous", ctypes.c_bool, [pointer]),
        ("ggml_nbytes", ctypes.c_size_t, [pointer]),
        ("ggml_backend_tensor_get", None, [pointer, pointer, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _place_of(settings: Opaque) -> int | None:
    """Where ``DEFAULTS`` stand in the settings of a context; ``None``: not once."""
    numbers = list(settings.numbers)
    size = len(DEFAULTS)
    found = [i for i in range(len(numbers) - size) if tuple(numbers[i : i + size]) == DEFAULTS]
    return found[0] if len(found) == 1 else None


def _set(settings: Opaque, place: int, callback: Any, num_tokens: int) -> None:
    """As ``LlamaCpp.server`` computes, in one go."""
    pointer = ctypes.cast(callback, ctypes.c_void_p)
    start = ctypes.addressof(settings) + 4 * (place + CALLBACK)
    ctypes.memmove(start, ctypes.addressof(pointer), ctypes.sizeof(pointer))
    settings.numbers[place + FLASH] = F32
    settings.numbers[place + KEYS] = settings.numbers[place + KEYS + 1] = F32
    # Tokens of a context, of what is given at once, and of what is computed at once.
    for i in range(3):
        settings.numbers[i] = max(settings.numbers[i], num_tokens)


class _Watched:
    """The function that llama.cpp calls: before a tensor is computed, and when it is."""

    def __init__(self, library: Any, told: Told) -> None:
        self._library, self._told, self._kind = library, told, _tensor_type()
        self._last: tuple[int, Tensor | None] = 0, None
        self._normed: dict[int, Tensor | None] = {}
        made = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
        self.callback = made(self._called)

    def _called(self, address: int, is_asked: bool, _: object) -> bool:
        node = self._kind.from_address(address)
        # Not the known structure: nothing of it is read.
        if self._library.ggml_get_name(address) != address + self._kind.name.offset:
            return False
        # All of them are asked for, one by one: a norm may overwrite what it reads.
        if not is_asked and node.type == F32:
            self._computed(address, node)
        return True

    def _computed(self, address: int, node: Any) -> None:
        operation = self._library.ggml_op_desc(address).decode()
        if operation == "RMS_NORM":
            self._normed[address] = self._read_by_norm(node)
        sources = [x for x in node.src[:2] if x]
        names = [self._kind.from_address(x).name.decode() for x in sources]
        parameter = next((x for x in names if x.endswith((".weight", ".bias"))), "")
        made = self._numbers(address)
        if parameter and made is not None:
            read = self._normed.pop(sources[0], None)
            if operation == "MUL_MAT":
                read = self._numbers(sources[1])
            self._told(operation, parameter, made, read)
        self._last = node.data, made

    def _read_by_norm(self, node: Any) -> Tensor | None:
        """What was there before, where it has overwritten what it read."""
        source = self._kind.from_address(node.src[0])
        if source.data != node.data:
            return self._numbers(node.src[0])
        place, kept = self._last
        if place != source.data or kept is None or kept.numel() != prod(source.ne):
            return None
        return kept.reshape(tuple(reversed(source.ne)))

    def _numbers(self, address: int) -> Tensor | None:
        """A tensor's numbers, its fastest axis last; ``None`` of a part of another one."""
        if not self._library.ggml_is_contiguous(address):
            return None
        found = torch.empty(
            tuple(reversed(self._kind.from_address(address).ne)), dtype=torch.float32
        )
        size = self._library.ggml_nbytes(address)
        assert size == found.nbytes  # float32, as both are
        self._library.ggml_backend_tensor_get(address, found.data_ptr(), 0, size)
        return found
