"""GGUF: the files of llama.cpp and Ollama."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from torch import Tensor, nn

from mpq.backends.file_size import FileSize
from mpq.backends.gguf.architecture import (
    ARCHITECTURES,
    EMBEDDING,
    GELU,
    HEAD,
    Architecture,
    architecture_of,
    full_config,
    gelu_by_table,
    metadata,
    rope_factors,
)
from mpq.backends.gguf.packers import packed_blocks
from mpq.backends.gguf.recipe import RECIPE, recipe
from mpq.backends.gguf.runtime import CHECK, FILE, PACKAGES, LlamaCpp, last_positions, prompts
from mpq.backends.gguf.size import gguf_size
from mpq.backends.gguf.types import (
    FLOAT_TYPES,
    MICROSCALING,
    TWO_BITS,
    block_type,
    layout_refusal,
)
from mpq.backends.gguf.vocabulary import SAMPLES, Vocabulary, vocabulary_of
from mpq.backends.half_precision import HALF
from mpq.backends.hugging_face import config_of, require
from mpq.backends.runtime import Loaded
from mpq.backends.target import MEDIAN, LayerShape, Shipped, Target, not_linear, rows_of
from mpq.errors import InputError
from mpq.network.examples import Batch
from mpq.network.refusals import simulated as is_simulated
from mpq.problem.assignment import AssignedLayer
from mpq.quantization.numerics import Numerics
from mpq.quantization.precision import Precision

ROPE_FACTORS: Final = "rope_freqs.weight"
"""What Llama 3.1 stretches positions by; no parameter of the network."""


@final
@dataclass(frozen=True)
class Gguf(Target):
    """One file with a tensor type per layer, the tokenizer and all settings.

    llama.cpp rounds the inputs of layers with integer weights to int8 while running; the simulation
    does the same (``Numerics.float_inputs``). Both round alike but for ties, of which a few per
    network fall to the other side, so that the median example is compared and not the worst.

    Args:
        tokenizer: A folder with ``tokenizer.json``; empty takes the one of the model's own folder.
        two_bits: The type of w2 in super-blocks: ``TQ2_0`` has 2.06 bits per weight and runs on
            processors, on Metal and Vulkan in part; ``Q2_K`` has 2.63 and runs everywhere.

    Raises:
        InputError: If there is no such type for 2 bits.
    """

    tokenizer: str = ""
    two_bits: str = "TQ2_0"

    name: ClassVar[str] = "gguf"
    summary: ClassVar[str] = (
        "llama.cpp and Ollama: a file with a tensor type per layer, in a folder"
    )
    extra: ClassVar[str] = "gguf"
    packages: ClassVar[tuple[str, ...]] = ("gguf", "xllamacpp")
    readers: ClassVar[str] = "llama.cpp, Ollama"
    holds: ClassVar[str] = (
        "linear layers and embeddings of Llama, Mistral, Qwen 2 and 3, Gemma 1 and 2, with rows of "
        "whole blocks of 32: w2 to w8 per tensor, channel or group of 256 (Q2_K to Q6_K, TQ2_0, "
        "Q8_0), w4, w5, w7, w8 in groups of 32 (Q4_0, Q5_0, Q8_0), mxfp4, nvfp4, fp16, bf16; "
        "symmetric; inputs in floating point, which llama.cpp rounds to int8 by itself"
    )
    candidates: ClassVar[tuple[str, ...]] = (
        "w2g256", "w3g256", "wmxfp4", "w4g32", "w5g32", "w6g256", "w8g32",
    )  # fmt: skip
    numerics: ClassVar[Numerics] = Numerics(
        scale="fp16", float_inputs="llama.cpp", tensor_scale="none"
    )
    judged: ClassVar[str] = MEDIAN
    weight_suffixes: ClassVar[tuple[str, ...]] = (".gguf",)
    notes: ClassVar[tuple[str, ...]] = (
        "w2, w3, w4 without whole super-blocks of 256 lie in Q4_0, w6 and w7 in Q8_0: their bytes "
        "are counted as they are.",
        "Compared: log-probabilities of the token after each prompt, the median prompt; llama.cpp "
        "rounds inputs to int8, and ties fall to either side.",
        "Gemma: llama.cpp reads GELU from a table in fp16. The check of an export does the same, a "
        "search does not.",
        "Compared with a key-value cache in float32 and without flash attention; llama.cpp's own "
        "defaults are fp16 and automatic: --cache-type-k f32 --cache-type-v f32 --flash-attn off.",
    )

    def __post_init__(self) -> None:
        if self.two_bits not in TWO_BITS:
            raise InputError(f"gguf: two_bits is {' or '.join(TWO_BITS)}; got {self.two_bits!r}")

    def check_network(self, model: nn.Module) -> None:
        """See ``Target.check_network``: the architecture, and the tokenizer."""
        config = full_config(config_of(model, self.name), _config(model))
        metadata(config, architecture_of(config))
        self._vocabulary(model, config)

    def _vocabulary(self, model: nn.Module, config: Mapping[str, Any]) -> Vocabulary:
        came_from = str(getattr(model, "name_or_path", "") or "")
        return vocabulary_of(self.tokenizer or came_from, config)

    def refusal(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.refusal``."""
        weight, number = precision.weight, precision.weight.number
        if layer.kind != "embedding" and not_linear(layer, self.name):
            return not_linear(layer, self.name)
        if not number.needs_scale:
            return self._float_refusal(layer, precision)
        if number.is_float and number.name not in MICROSCALING:
            return f"it holds no weights in {number.name}: w2 to w8, mxfp4, nvfp4, fp16, bf16"
        if number.bits > 8:
            return f"it holds integers of 2 to 8 bits, and no {number.name}"
        if not weight.symmetric:
            return "a minimum of its types is no zero point: symmetric weights only"
        if not precision.activation.is_exact:
            return (
                f"llama.cpp rounds inputs to int8 by itself and not to "
                f"{precision.activation.number.name}: write {str(precision).partition('a')[0]}a32"
            )
        return layout_refusal(weight, rows_of(layer)[1])

    def _float_refusal(self, layer: LayerShape, precision: Precision) -> str:
        number, read = precision.weight.number, precision.activation.number
        if number.name not in FLOAT_TYPES:
            return f"it holds no weights in {number.name}"
        # An embedding reads token ids, which nobody rounds.
        if read.name != number.name and layer.kind != "embedding":
            return f"llama.cpp rounds the inputs of weights in {number.name} alike: {number.name}"
        return ""

    def stored_bits(self, layer: LayerShape, precision: Precision) -> int:
        """See ``Target.stored_bits``: whole blocks."""
        num_channels, num_inputs = rows_of(layer)
        if not precision.weight.number.needs_scale:
            return num_channels * num_inputs * precision.weight.number.bits
        chosen = block_type(precision.weight, num_inputs, self.two_bits)
        return num_channels * num_inputs // chosen.block * chosen.block_bytes * 8

    def stored_kind(self, layer: LayerShape, precision: Precision) -> str:
        """See ``Target.stored_kind``."""
        if not precision.weight.number.needs_scale:
            return FLOAT_TYPES[precision.weight.number.name]
        return block_type(precision.weight, rows_of(layer)[1], self.two_bits).name

    def constant_bytes(self, tensor: Tensor) -> int:
        """See ``Target.constant_bytes``: norms and biases in float32, whatever they came in."""
        return tensor.numel() * (2 if _half_type(tensor) else 4)

    def header_bytes(self, folder: Path) -> int:
        """See ``Target.header_bytes``: the vocabulary too, and what aligns the tensors."""
        import gguf

        reader = gguf.GGUFReader(folder / FILE)
        return int(reader.data_offset) + len(reader.tensors) * int(reader.alignment)

    def adapt(self, simulated: nn.Module, model: nn.Module) -> None:
        """See ``Target.adapt``: GELU by llama.cpp's table, in Gemma; inputs in half precision."""
        ours = dict(simulated.named_modules(remove_duplicate=False))
        for name, module in model.named_modules(remove_duplicate=False):
            is_half = isinstance(module, nn.Linear) and module.weight.dtype in HALF
            if is_half and is_simulated(name, ours[name]) is None:
                ours[name].register_forward_pre_hook(partial(_rounded_input, module.weight.dtype))
        config = _config(simulated)
        if (getattr(config, "hidden_act", None) or config.hidden_activation) == GELU:
            for name, module in simulated.named_modules():
                if name.endswith(".mlp.act_fn"):
                    module.register_forward_hook(gelu_by_table)

    def compared(self, outputs: Tensor, batch: Batch) -> Tensor:
        """See ``Target.compared``: log-probabilities ``[N, V]`` after the last token."""
        rows = torch.arange(len(outputs), device=outputs.device)
        return outputs[rows, last_positions(batch)].log_softmax(dim=-1)

    def traced_batch(self, batches: Sequence[Batch]) -> Batch:
        """See ``Target.traced_batch``: the first prompt alone, without its padding."""
        (prompt, *_) = prompts(batches[0])
        return Batch((), {"input_ids": torch.tensor([prompt], device=batches[0].tensors[0].device)})

    def write(self, shipped: Shipped, folder: Path) -> None:
        """See ``Target.write``."""
        for package in PACKAGES:
            require(package, self.extra)
        import gguf

        config = full_config(config_of(shipped.model, self.name), _config(shipped.model))
        found = architecture_of(config)
        vocabulary = self._vocabulary(shipped.model, config)
        writer = _begun(folder / FILE, config, found, vocabulary)
        types: dict[str, str] = {}
        for name, array, kind in self._tensors(shipped, config, found):
            types[name] = kind
            writer.add_tensor(name, array, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        samples = dict(zip(SAMPLES, vocabulary.samples, strict=True))
        (folder / CHECK).write_text(json.dumps(samples, indent=1) + "\n", encoding="utf-8")
        (folder / RECIPE).write_text(recipe(types), encoding="utf-8")

    def file_size(
        self,
        model: nn.Module,
        module: nn.Module,  # noqa: ARG002
        names: Collection[str],
    ) -> FileSize:
        """See ``SaysFileSize.file_size``."""
        require("gguf", self.extra)
        config = full_config(config_of(model, self.name), _config(model))
        found = architecture_of(config)
        vocabulary = self._vocabulary(model, config)
        tensors = _parameters(model)
        theirs = {name: found.tensor_name(name) for name in tensors}
        factors = rope_factors(config)
        if factors is not None:
            tensors[ROPE_FACTORS], theirs[ROPE_FACTORS] = factors, ROPE_FACTORS
        return gguf_size(
            partial(_begun, config=config, found=found, vocabulary=vocabulary),
            tensors,
            theirs,
            {f"{name}.weight" for name in names},
            self.constant_bytes,
            self.stored_bits,
        )

    def _tensors(
        self, shipped: Shipped, config: dict[str, Any], found: Architecture
    ) -> Iterator[tuple[str, Any, str]]:
        """Names, bytes and types of all tensors, in llama.cpp's order of rows."""
        layers = {f"{layer.name}.weight": layer for layer in shipped.quantized}
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        for ours, tensor in _parameters(shipped.model).items():
            name = found.tensor_name(ours)
            layer = layers.get(ours)
            array, kind = (
                _unquantized(tensor, _offset(name, found))
                if layer is None
                else self._stored(shipped, layer)
            )
            order = found.row_order(name, len(tensor), heads, kv_heads)
            yield name, array if order is None else array[order.numpy()], kind
        factors = rope_factors(config)
        if factors is not None:
            yield ROPE_FACTORS, _number_bytes(factors), "F32"

    def _stored(self, shipped: Shipped, layer: AssignedLayer) -> tuple[Any, str]:
        """Bytes ``[O, B]`` and type of a layer's weight."""
        weight = layer.precision.weight
        if weight.number.needs_scale:
            chosen = block_type(weight, rows_of(layer)[1], self.two_bits)
            return packed_blocks(shipped.codes(layer), chosen), chosen.name
        layer_module = shipped.module.get_submodule(layer.name)
        rounded = shipped.quantizer.weight(layer.name, layer_module, weight)
        half = torch.float16 if weight.number.name == "fp16" else torch.bfloat16
        return _number_bytes(rounded.to(half)), FLOAT_TYPES[weight.number.name]

    def load(self, folder: Path) -> Loaded:
        """See ``Target.load``."""
        for package in PACKAGES:
            require(package, self.extra)
        import gguf

        reader = gguf.GGUFReader(folder / FILE)
        found = ARCHITECTURES[str(_field(reader, "mpq.model_type"))]
        heads = int(_field(reader, f"{found.name}.attention.head_count"))
        kv_heads = int(_field(reader, f"{found.name}.attention.head_count_kv"))
        weights: dict[str, Tensor] = {}
        kinds: dict[str, str] = {}
        size = 0
        for tensor in reader.tensors:
            name, kind = found.layer_name(tensor.name), tensor.tensor_type.name
            if name == EMBEDDING:
                size = int(tensor.shape[1])
            if not name or kind == "F32":
                continue
            rows = torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
            order = found.row_order(tensor.name, len(rows), heads, kv_heads)
            weights[name] = rows if order is None else rows[order.argsort()]
            kinds[name] = kind
        if (
            "output.weight" not in {tensor.name for tensor in reader.tensors}
            and EMBEDDING in weights
        ):
            weights[HEAD], kinds[HEAD] = weights[EMBEDDING].clone(), kinds[EMBEDDING]
        length = int(_field(reader, f"{found.name}.context_length"))
        tokens = _field(reader, "tokenizer.ggml.tokens")
        letter = next(i for i, text in enumerate(tokens) if text.isascii() and text.isalpha())
        sizes = heads, kv_heads
        loaded = LlamaCpp(folder, weights, kinds, size, letter, length, found, sizes)
        loaded.check_tokens()
        return loaded


def _begun(
    path: Path, config: Mapping[str, Any], found: Architecture, vocabulary: Vocabulary
) -> Any:
    """A writer of a file with all of its keys and values, and no tensor yet."""
    import gguf

    writer = gguf.GGUFWriter(path, found.name)
    for key, value in metadata(config, found).items():
        _add(writer, key, value)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, vocabulary)
    return writer


def _config(model: nn.Module) -> Any:
    return model.config


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    """All parameters by name; without the head where it is the embedding, which llama.cpp knows."""
    found = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    embedding, head = found.get(f"{EMBEDDING}.weight"), found.get(f"{HEAD}.weight")
    if embedding is not None and head is not None and head.data_ptr() == embedding.data_ptr():
        del found[f"{HEAD}.weight"]
    return found


def _half_type(tensor: Tensor) -> str:
    """The type of a matrix in half precision; llama.cpp has vectors in float32 alone."""
    return FLOAT_TYPES[HALF[tensor.dtype]] if tensor.ndim > 1 and tensor.dtype in HALF else ""


def _unquantized(tensor: Tensor, offset: float) -> tuple[Any, str]:
    """Bytes and type of what stays as it came."""
    if kind := _half_type(tensor):
        return _number_bytes(tensor), kind
    return _number_bytes(tensor.float() + offset), "F32"


def _rounded_input(dtype: torch.dtype, _: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """Forward pre-hook: inputs of matrices in half precision, as llama.cpp rounds them."""
    (x,) = args
    return (x.to(dtype).to(x.dtype),)


def _offset(name: str, found: Architecture) -> float:
    return found.norm_offset if name.endswith("norm.weight") else 0.0


def _number_bytes(tensor: Tensor) -> Any:
    """``[O, ...]`` as bytes, in which numpy has no bfloat16."""
    whole = tensor.detach().cpu().contiguous()
    if whole.dtype == torch.bfloat16:
        return whole.view(torch.uint8).numpy()
    return whole.numpy()


def _add(writer: Any, key: str, value: str | int | float | bool) -> None:
    # A truth value is an int, too.
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    for key, value in vocabulary.values.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()
