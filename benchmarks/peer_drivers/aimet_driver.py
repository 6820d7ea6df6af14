"""AdaRound (Nagel et al. 2020, arXiv:2004.10568) by the package ``aimet-torch``.

BatchNorm folded by the package, weights per channel and symmetric (its configuration per channel,
but that LayerNorm keeps its parameters), ranges by its own default. The weights that it returns are
rounded softly, those that steps have not decided lie between two codes: its simulation with the
encodings that it wrote beside them rounds these to nearest, and its numbers are taken.
"""

import json
from pathlib import Path

from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.nn import QuantizationMixin
from aimet_torch.quantsim import QuantizationSimModel
from aimet_torch.utils import remove_activation_quantizers
from common import Question, check_levels, grouped_bits
from torch.utils.data import DataLoader

SCALE_BITS = 32
BATCH_SIZE = 32
KEPT = {"params": {"weight": {"is_quantized": "False"}}}


def configuration(folder: Path) -> str:
    """A file of how a network is simulated: weights of convolutions and linear layers alone."""
    from aimet_torch.common.quantsim_config.utils import (
        get_path_for_per_channel_config,
    )

    told = json.loads(Path(get_path_for_per_channel_config()).read_text("utf-8"))
    told["op_type"]["LayerNormalization"] = KEPT
    file = folder / "configuration.json"
    file.write_text(json.dumps(told), "utf-8")
    return str(file)


def main() -> None:
    """Quantizes all convolutions and linear layers."""
    question = Question.given()
    config = configuration(question.folder)
    inputs = question.inputs
    model, example = question.network(), inputs[:1]
    loader = DataLoader(inputs, batch_size=BATCH_SIZE)
    parameters = AdaroundParameters(
        loader, len(loader), default_num_iterations=question.asked["iterations"]
    )

    for leaf in model.modules():
        if not list(leaf.children()) and type(leaf).__module__ == "example":
            QuantizationMixin.ignore(type(leaf))  # the example's own, which have no weights

    def quantized() -> QuantizationSimModel:
        fold_all_batch_norms(model, tuple(example.shape), dummy_input=example)
        rounded = Adaround.apply_adaround(
            model,
            example,
            parameters,
            path=str(question.folder),
            filename_prefix="encodings",
            default_param_bw=question.bits,
            default_config_file=config,
        )
        simulated = QuantizationSimModel(
            rounded, example, default_param_bw=question.bits, config_file=config
        )
        simulated.set_and_freeze_param_encodings(str(question.folder / "encodings.encodings"))
        return simulated

    simulated = question.timed(quantized).model.eval()
    modules = dict(simulated.named_modules())
    found, bits = {}, {}
    for name in question.layers:
        weight, bias = modules[name].weight, modules[name].bias
        weight = found[name] = modules[name].param_quantizers["weight"](weight).dequantize()
        check_levels(name, weight, question.bits, None)
        if bias is not None:
            found[f"{name}.bias"] = bias
        bits[name] = grouped_bits(weight, question.bits, weight.shape[0], SCALE_BITS)
    with remove_activation_quantizers(simulated):
        question.answer(found, bits, simulated)


if __name__ == "__main__":
    main()
