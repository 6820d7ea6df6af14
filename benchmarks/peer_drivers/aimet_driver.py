"""AdaRound (Nagel et al. 2020, arXiv:2004.10568) by the package ``aimet-torch``.

BatchNorm folded by the package, weights per channel and symmetric (its configuration per channel),
ranges by its own default. Numbers are those of the weights that it returns.
"""

import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.nn import QuantizationMixin
from common import Question, check_levels, grouped_bits
from torch.utils.data import DataLoader

SCALE_BITS = 32
BATCH_SIZE = 32


def main() -> None:
    """Quantizes all convolutions and linear layers."""
    from aimet_torch.common.quantsim_config.utils import (
        get_path_for_per_channel_config,
    )

    question = Question.given()
    inputs = question.inputs
    model, example = question.network(), inputs[:1]
    loader = DataLoader(inputs, batch_size=BATCH_SIZE)
    parameters = AdaroundParameters(
        loader, len(loader), default_num_iterations=question.asked["iterations"]
    )

    for leaf in model.modules():
        if not list(leaf.children()) and type(leaf).__module__ == "example":
            QuantizationMixin.ignore(type(leaf))  # the example's own, which have no weights

    def quantized() -> torch.nn.Module:
        fold_all_batch_norms(model, tuple(example.shape), dummy_input=example)
        return Adaround.apply_adaround(
            model,
            example,
            parameters,
            path=str(question.folder),
            filename_prefix="encodings",
            default_param_bw=question.bits,
            default_config_file=get_path_for_per_channel_config(),
        )

    rounded = question.timed(quantized).eval()
    modules = dict(rounded.named_modules())
    found, bits = {}, {}
    for name in question.layers:
        weight, bias = modules[name].weight, modules[name].bias
        found[name] = weight
        check_levels(name, weight, question.bits, None)
        if bias is not None:
            found[f"{name}.bias"] = bias
        bits[name] = grouped_bits(weight, question.bits, weight.shape[0], SCALE_BITS)
    question.answer(found, bits, rounded)


if __name__ == "__main__":
    main()
