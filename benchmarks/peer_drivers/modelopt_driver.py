"""``auto_quantize`` of NVIDIA ModelOpt by gradients, over integer formats in groups.

Its loss is the cross entropy of the next token, as in the package's own examples.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
from clock import Asked, cost


def main() -> None:
    """Searches, and prints what it took as the last line."""
    asked = Asked(Path(sys.argv[1]))
    options = asked.options
    model, batches = asked.network(), asked.batches
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    chosen: dict[str, Any] = {}

    def search() -> None:
        _, state = mtq.auto_quantize(
            model,
            constraints={"effective_bits": options["effective_bits"]},
            quantization_formats=[
                weights_only(bits, options["group_size"], options["algorithm"])
                for bits in options["bits"]
            ],
            data_loader=labelled,
            forward_step=lambda network, batch: network(**batch),
            loss_func=lambda output, _: output.loss,
            num_calib_steps=len(labelled),
            num_score_steps=len(labelled),
            method="gradient",
        )
        chosen.update(state["best"]["recipe"])

    told = cost(search)
    formats = Counter(str(recipe) for recipe in chosen.values())
    print(json.dumps({**told, "groups_of_layers": len(chosen), "chosen": dict(formats)}))


def weights_only(bits: int, group_size: int, algorithm: str) -> dict[str, Any]:
    """A format in which a layer's weights alone are quantized, symmetrically."""
    weights = {"num_bits": bits, "block_sizes": {-1: group_size, "type": "static"}}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": weights},
            {"quantizer_name": "*input_quantizer", "enable": False},
        ],
        "algorithm": algorithm,
    }


if __name__ == "__main__":
    main()
