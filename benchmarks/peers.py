"""What other quantizers lose on the same network and examples, and what we lose in their bytes.

    python benchmarks/peers.py llama hqq --bits 3,4 --envs environments \
        --into benchmarks/peers/llama-hqq.json

Each peer has a virtual environment of its own in the folder of ``--envs``, which is made with the
pinned line of ``PEERS`` where it is not there yet (up to 6 GB each). A driver of ``peer_drivers``
runs there: it quantizes the network with the peer's public functions and the calibration examples,
and writes the numbers that the codes stand for, how many bits each layer's codes, scales and zero
points take, and the processor seconds of the peer's calls alone. Here they are put into the
network, and measured as ``rounding_search.py`` does: KL divergence in nats on the same fresh
examples, weights only.

Beside it stands ``mpq.search`` with its defaults: the same calibration examples and layers, formats
of the same kind in 2, 3, 4, 5, 6 and 8 bits, at most the peer's bytes; processor seconds of
the whole search. ``ratio`` is our divergence over the peer's, with a 95 % interval by paired
bootstrap over examples: below 1 we lose less. Bits of codes are counted as they are spelled, packed
tightly, on both sides; scales and zero points as each side stores them. Peers that run the network
also say what their own quantized network answers to a few examples: ``output_difference`` is the
largest difference of ours with their numbers, over the largest answer.

With ``--tuned`` a second search stands beside it, which is asked to round again layer by layer and
to tune what comes out (``sequential_rounding``, ``tune=TUNING``), as a peer does that trains its
rounding; ``ratio_tuned`` is that one's.

``--setting LABEL``, once or more, asks a peer in these of its ways alone, by the labels of rows.

Of the Llama all linear layers of its blocks are quantized, by both sides; the embedding and the
head, one parameter, stay as they are. Of ResNet-20 and the vision transformer all layers are.
Rows that are in the file already are not made again. Needs the published networks: MPQ_DATA, or
../shared/data.
"""

import argparse
import copy
import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from estimators import NETWORKS, ROOT
from rounding_search import Batches, network, ratio
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mpq
from mpq.cli.loading import load_object
from mpq.network.modules import share_parameters
from mpq.network.network import Network
from mpq.report.measurement import Measurement
from mpq.workflows.evaluate import Reference
from mpq.workflows.setup import Prepared

BITS: Final = (2, 3, 4, 5, 6, 8)
"""Of our candidates."""
EXCLUDED: Final = {"llama": ("model.embed_tokens", "lm_head")}
"""Layers that stay as they are on both sides."""
INSTALLATION_LIMIT_S: Final = 3600
DRIVER_LIMIT_S: Final = 7200


@dataclass(frozen=True)
class Setting:
    """How a peer is asked to quantize.

    Args:
        label: What is special about it; with the bits, the name of a row.
        kinds: Glob of layers to our candidates there, with ``{bits}`` for the bits; later ones
            override earlier ones.
        networks: Whose layers the peer takes so.
        options: What the driver reads, beside the bits.
        exclude: Globs of layers that stay as they are, on both sides, as the peer takes none of
            their shape.
        only_bits: That the peer takes so; empty: any.
    """

    label: str
    kinds: Mapping[str, str]
    networks: tuple[str, ...]
    options: Mapping[str, Any]
    exclude: tuple[str, ...] = ()
    only_bits: tuple[int, ...] = ()

    def takes(self, network: str, bits: int) -> bool:
        """Whether the peer quantizes a network so, with so many bits."""
        return network in self.networks and (not self.only_bits or bits in self.only_bits)


@dataclass(frozen=True)
class Peer:
    """Another quantizer.

    Args:
        package: Its name on PyPI.
        pip: The pinned line; versions of all that is named are in the output.
        driver: File of ``peer_drivers``.
        settings: How it is asked.
    """

    package: str
    pip: tuple[str, ...]
    driver: str
    settings: tuple[Setting, ...]


LLAMA: Final = ("llama",)
IMAGES: Final = ("resnet20", "vit")
TUNING: Final = "all:epochs=24,code_lr=0.002"
"""With ``--tuned``: chosen on another excerpt of the stories than what is measured on."""
ADAROUND_ITERATIONS: Final = 1000
"""Of a layer, in 4 minutes of processor time: its default is 15,000."""
MCT_RESNET20: Final = {"epochs": 10, "is_weighted": True}
"""480 steps of 0.2 seconds. Its loss weighs layers by Hessian scores of 32
examples, as it does by default without attention to samples: with that, scores alone take a
hundred passes for every batch."""
MCT_VIT: Final = {"epochs": 30, "is_weighted": False}
"""480 steps of 0.3 seconds. Its Hessian scores are a hundred times the gradient of every
activation, of which 69 had ended after 7 minutes; without them its loss weighs layers alike."""
PER_CHANNEL: Final = Setting("per channel", {"*": "w{bits}"}, LLAMA, {"group_size": None})
MLP: Final = ("*mlp*",)
"""Their 172 inputs or outputs are no multiple of 32: AutoRound leaves them as they are, and
GPTQModel fails to pack codes of 3 bits."""
DOWN: Final = ("down_proj",)
"""Layers whose 172 inputs are no multiple of a group, which some refuse."""
MOSTLY_GROUPS: Final = Setting(
    "groups of 32, down_proj per channel",
    {"*": "w{bits}g32", "*down_proj": "w{bits}"},
    LLAMA,
    {"group_size": 32, "per_channel": DOWN},
)
PEERS: Final = {
    "hqq": Peer(
        "hqq",
        ("torch==2.13.0", "hqq==0.2.8.post1"),
        "hqq_driver.py",
        (Setting("groups of 64", {"*": "w{bits}zg64"}, LLAMA, {"group_size": 64}),),
    ),
    "auto-round": Peer(
        "auto-round",
        ("torch==2.13.0", "transformers==5.24.0", "auto-round==0.16.1", "accelerate==1.15.0"),
        "auto_round_driver.py",
        (
            Setting(
                "attention, groups of 64",
                {"*": "w{bits}g64"},
                LLAMA,
                {"group_size": 64, "symmetric": True},
                MLP,
            ),
            Setting(
                "attention, groups of 64, zero points",
                {"*": "w{bits}zg64"},
                LLAMA,
                {"group_size": 64, "symmetric": False},
                MLP,
            ),
            Setting(
                "attention, groups of 32",
                {"*": "w{bits}g32"},
                LLAMA,
                {"group_size": 32, "symmetric": True},
                MLP,
            ),
        ),
    ),
    "llm-compressor": Peer(
        "llmcompressor",
        ("torch==2.13.0", "llmcompressor==0.14.0.1"),
        "llm_compressor_driver.py",
        (PER_CHANNEL, MOSTLY_GROUPS),
    ),
    "gptqmodel": Peer(
        "gptqmodel",
        ("torch==2.13.0", "transformers==5.24.0", "gptqmodel==7.6.0", "optimum==2.3.0"),
        "gptqmodel_driver.py",
        (
            # Codes of 3 bits it packs for whole 32 outputs alone.
            Setting("groups of 32", {"*": "w{bits}g32"}, LLAMA, {"group_size": 32}, (), (2, 4, 8)),
            Setting(
                "attention, groups of 32",
                {"*": "w{bits}g32"},
                LLAMA,
                {"group_size": 32, "skipped": ["mlp"]},
                MLP,
                (3,),
            ),
        ),
    ),
    "aimet": Peer(
        "aimet-torch",
        ("torch==2.14.1", "torchvision==0.29.1", "aimet-torch==2.42.0"),
        "aimet_driver.py",
        (
            Setting(
                "AdaRound",
                {"*": "w{bits}"},
                IMAGES,
                {"iterations": ADAROUND_ITERATIONS},
                only_bits=(4, 5, 6, 8),  # "4-31" in its documentation
            ),
        ),
    ),
    "mct": Peer(
        "model-compression-toolkit",
        (
            "torch==2.14.1",
            "torchvision==0.29.1",
            "model-compression-toolkit==2.6.1",
            "safetensors==0.8.0",
        ),
        "mct_driver.py",
        (
            Setting("mixed precision", {"*": "w{bits}"}, IMAGES, {"epochs": 0, "is_mixed": True}),
            *(
                Setting(label, {"*": "w{bits}"}, (name,), {**options, "is_mixed": is_mixed})
                for name, options in (("resnet20", MCT_RESNET20), ("vit", MCT_VIT))
                for label, is_mixed in (("GPTQ", False), ("mixed precision and GPTQ", True))
            ),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--bits", default="3,4")
    parser.add_argument("--setting", action="append", default=[], help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--tuned", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    peer = PEERS[given.peer]
    python = environment(peer, given.envs / given.peer)
    told = {
        "pip": "pip install " + " ".join(peer.pip),
        "package": peer.package,
        "versions": versions(python, peer),
        "torch": torch.__version__,
        "mpq": mpq.__version__,
        "rows": rows_there(given.into),
    }
    done = {(row["setting"], row["bits"], row["seed"]) for row in told["rows"]}
    write(told, given)
    asked = [x for x in peer.settings if not given.setting or x.label in given.setting]
    for setting in asked:
        for bits in map(int, given.bits.split(",")):
            is_done = (setting.label, bits, given.seed) in done
            if setting.takes(given.network, bits) and not is_done:
                compared = Compared.of(given.network, given.seed, setting, given.tuned)
                told["rows"].append(compared.row(peer, bits, python))
                write(told, given)


def rows_there(into: Path) -> list[dict[str, Any]]:
    """Of a run that was stopped."""
    found: list[dict[str, Any]] = []
    if into.exists():
        found = json.loads(into.read_text("utf-8"))["rows"]
    return found


def write(told: Mapping[str, Any], given: argparse.Namespace) -> None:
    """After every row, as those of some peers take long; with the command that makes all rows."""
    bits = ",".join(sorted({str(row["bits"]) for row in told["rows"]}))
    made = {row["setting"] for row in told["rows"]}
    possible = [x.label for x in PEERS[given.peer].settings if given.network in x.networks]
    some = [] if made.issuperset(possible) else [x for x in possible if x in made]
    command = (
        f"python benchmarks/peers.py {given.network} {given.peer} --bits {bits} "
        f"--seed {given.seed} --envs environments --into benchmarks/peers/{given.into.name}"
        + "".join(f" --setting {shlex.quote(label)}" for label in some)
        + (" --tuned" if given.tuned else "")
    )
    given.into.parent.mkdir(exist_ok=True)
    text = json.dumps({"command": command, **told}, indent=1) + "\n"
    given.into.write_text(text, encoding="utf-8")


@dataclass(frozen=True, eq=False)
class Compared:
    """One network and its examples, and how it is quantized.

    Args:
        name: Of ``NETWORKS``.
        seed: Of the calibration examples that are drawn, and of the search.
        setting: Of the peer.
        model: As users have it.
        calibration: For both sides.
        fresh: That both sides are measured on.
        own: Our copy of it, BatchNorm folded: its layers are what peers return.
        reference: The network's own answers to the fresh examples.
        is_tuned: Whether there is a second search, whose answer is tuned.
    """

    name: str
    seed: int
    setting: Setting
    model: nn.Module
    calibration: Any
    fresh: Any
    own: Network
    reference: Reference
    is_tuned: bool

    @classmethod
    def of(cls, name: str, seed: int, setting: Setting, is_tuned: bool) -> "Compared":
        """Loads the network; the Llama as transformers has it, since peers read no other."""
        model, (calibration, fresh) = network(name, seed)
        if name == "llama":
            model = load_object(f"{ROOT / 'examples' / 'llama_stories_transformers.py'}:make_net")()
            calibration, fresh = _ids(calibration), _ids(fresh)
        exclude = (*EXCLUDED.get(name, ()), *setting.exclude)
        own = Network.of(model, calibration, exclude=exclude)
        reference = Reference(share_parameters(model), mpq.Calibration.of(fresh))
        return cls(name, seed, setting, model, calibration, fresh, own, reference, is_tuned)

    def row(self, peer: Peer, bits: int, python: Path) -> dict[str, Any]:
        """The peer and we, side by side."""
        setting = self.setting
        print(self.name, peer.driver, setting.label, bits, file=sys.stderr)
        with TemporaryDirectory() as folder:
            place = Path(folder)
            self._ask(bits, place)
            driver = ROOT / "benchmarks" / "peer_drivers" / peer.driver
            run([str(python), str(driver), folder], DRIVER_LIMIT_S, place)
            told = json.loads((place / "told.json").read_text("utf-8"))
            tensors = load_file(place / "weights.safetensors")
        outputs = tensors.pop("outputs", None)
        theirs = self._with(tensors)
        theirs_measured = self.reference.compare(theirs)
        sizes = {x.name: x.num_weights for x in self.own.layers}
        limit = sum(-(-told["bits"][name] // 8) for name in sizes)
        candidates = {
            layers: [kind.format(bits=b) for b in BITS] for layers, kind in setting.kinds.items()
        }
        ours, ours_told = self._search(candidates, limit)
        found = ratio(ours.by_example, theirs_measured.by_example)
        more = self._tuned(candidates, limit, theirs_measured) if self.is_tuned else {}
        row = {
            "network": self.name,
            "seed": self.seed,
            "setting": setting.label,
            "bits": bits,
            "options": dict(setting.options),
            "excluded": [*EXCLUDED.get(self.name, ()), *setting.exclude],
            "num_layers": len(sizes),
            "peer": {
                "weight_bytes": limit,
                "bits_per_weight": 8 * limit / sum(sizes.values()),
                **_losses(theirs_measured),
                "processor_seconds": told["processor_seconds"],
                "weight_error": self._weight_error(tensors),
                "output_difference": None if outputs is None else self._apart(theirs, outputs),
                **told["more"],
            },
            "mpq": {**_losses(ours), **ours_told, "candidates": candidates},
            **{key: found[key] for key in ("ratio", "ratio_low", "ratio_high")},
            **more,
        }
        print(json.dumps({key: row[key] for key in ("peer", "mpq", "ratio")}), file=sys.stderr)
        return row

    def _ask(self, bits: int, place: Path) -> None:
        """What the driver reads: the question, the network, its weights and the examples."""
        asked = {
            "network": self.name,
            "bits": bits,
            "seed": self.seed,
            "layers": [layer.name for layer in self.own.layers],
            **self.setting.options,
        }
        inputs = [next(iter(_inputs(batch))) for batch in self.calibration]
        save_file({"inputs": torch.cat(inputs).contiguous()}, place / "calibration.safetensors")
        weights = {
            layer.name: self.own.module.get_submodule(layer.name).weight.detach().contiguous()
            for layer in self.own.layers
        }
        save_file(weights, place / "float.safetensors")
        if self.name == "llama":
            self.model.save_pretrained(place / "network")  # type: ignore[operator]
            save_tokenizer = f"{ROOT / 'examples' / 'llama_stories_transformers.py'}:save_tokenizer"
            load_object(save_tokenizer)(place / "network")
        else:
            example, file = NETWORKS[self.name]
            spec = ROOT / "examples" / f"{example}.py"
            asked |= {
                "example": str(spec),
                "weights": str((load_object(f"{spec}:DATA") / file).absolute()),
            }
        (place / "asked.json").write_text(json.dumps(asked), "utf-8")

    def _with(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Our copy with a peer's numbers: ``NAME`` is a weight, ``NAME.bias`` its bias."""
        module = copy.deepcopy(self.own.module)
        for layer in self.own.layers:
            own = module.get_submodule(layer.name)
            own.weight = nn.Parameter(tensors[layer.name].reshape_as(own.weight), False)
            bias = tensors.get(f"{layer.name}.bias")
            if bias is not None:
                own.bias = nn.Parameter(bias, False)
        return module

    def _weight_error(self, tensors: Mapping[str, Tensor]) -> float:
        """Squared error of all weights over their squares."""
        error = total = 0.0
        for layer in self.own.layers:
            own = self.own.module.get_submodule(layer.name).weight.detach()
            error += float((tensors[layer.name].reshape_as(own) - own).square().sum())
            total += float(own.square().sum())
        return error / total

    @torch.no_grad()
    def _apart(self, theirs: nn.Module, outputs: Tensor) -> float:
        """How far our network with their numbers is from theirs, on their first examples."""
        inputs = next(iter(_inputs(self.calibration[0])))[: len(outputs)]
        answer = theirs(inputs)
        ours = answer if isinstance(answer, Tensor) else answer.logits
        return float((ours - outputs).abs().max() / outputs.abs().max())

    def _tuned(
        self, candidates: Mapping[str, list[str]], limit: int, theirs: Measurement
    ) -> dict[str, Any]:
        ours, told = self._search(candidates, limit, sequential_rounding=True, tune=TUNING)
        found = ratio(ours.by_example, theirs.by_example)
        keys = ("ratio", "ratio_low", "ratio_high")
        return {
            "mpq_tuned": {**_losses(ours), **told},
            **{key.replace("ratio", "ratio_tuned"): found[key] for key in keys},
        }

    def _search(
        self, candidates: Mapping[str, list[str]], limit: int, **options: Any
    ) -> tuple[Measurement, dict[str, Any]]:
        """``mpq.search`` with its defaults but for some, within so many bytes of the layers."""
        everywhere = candidates["*"]
        others = {layers: own for layers, own in candidates.items() if layers != "*"}
        exclude = (*EXCLUDED.get(self.name, ()), *self.setting.exclude)
        rules = mpq.Rules(exclude=exclude, allow=others)
        task = mpq.Task(
            self.model,
            self.calibration,
            candidates=everywhere,
            rules=rules,
            seed=self.seed,
            **options,
        )
        constant = Prepared.of(task).pricing.constant_bytes
        start = time.process_time()
        result = mpq.search(task, {"weight_bytes": constant + limit})
        seconds = time.process_time() - start
        budget = result.assignment.metadata.budgets[0]
        precisions = Counter(str(x.precision) for x in result.assignment.layers)
        measured = mpq.evaluate(self.model, result.assignment, self.fresh)["quantized"]
        return measured, {
            "weight_bytes": int(budget.used) - constant,
            "processor_seconds": seconds,
            "precisions": dict(sorted(precisions.items())),
            **_kept(result),
        }


def _ids(batches: Batches) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids} for ids, _ in batches]


def _inputs(batch: Any) -> list[Tensor]:
    """A batch's inputs, without targets."""
    return [batch["input_ids"]] if isinstance(batch, dict) else [batch[0]]


def _kept(result: mpq.SearchResult) -> dict[str, bool]:
    """What was asked for besides, and whether its trial kept it."""
    made = result.provenance
    asked = {"sequential_rounding": made.sequential_rounding, "tuning": made.tuning}
    return {f"{name}_is_kept": x.is_kept for name, x in asked.items() if x is not None}


def _losses(measured: Measurement) -> dict[str, Any]:
    return {"kl_nats": measured.divergence, "accuracy": measured.accuracy}


def environment(peer: Peer, folder: Path) -> Path:
    """The Python of a peer's environment, which is made where it is not there.

    Raises:
        subprocess.CalledProcessError: If the peer cannot be installed.
    """
    python = folder.absolute() / "bin" / "python"
    if not folder.exists():
        run([sys.executable, "-m", "venv", str(folder)], INSTALLATION_LIMIT_S)
        line = [str(python), "-m", "pip", "install", "--quiet", *peer.pip]
        run(line, INSTALLATION_LIMIT_S)
    return python


def versions(python: Path, peer: Peer) -> dict[str, str]:
    """Of what the peer's line names."""
    names = [package.split("==")[0] for package in peer.pip]
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    found: dict[str, str] = json.loads(run([str(python), "-c", code, *names]))
    return found


def run(
    command: list[str], limit_s: int = DRIVER_LIMIT_S, current_folder: Path | None = None
) -> str:
    """What a command prints; on one thread, and without a hub.

    Some peers leave logs in the current folder, which ours is not to be.

    Raises:
        subprocess.CalledProcessError: If it fails; what it said goes to stderr.
    """
    alone = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GPTQMODEL_CPU_WORKERS": "2",  # by default half of the cores, and it fails with one
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": "",
    }
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=limit_s, check=False,
        env={**os.environ, **alone}, cwd=current_folder,
    )  # fmt: skip
    if ended.returncode:
        sys.stderr.write(ended.stdout[-4000:] + ended.stderr[-4000:])
    ended.check_returncode()
    return ended.stdout


if __name__ == "__main__":
    main()
