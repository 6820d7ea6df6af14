"""What every verb is asked about: a network, its data, and what its layers may become.

Defaults stand here and nowhere else. Loads no torch: the command line's options are made of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, final

from mpq._support.bounds import check_whole
from mpq._support.workers import Workers
from mpq.errors import InputError
from mpq.network.workload import Workload
from mpq.quantization.kv_cache import KVCache
from mpq.quantization.operand_formats import ALL, INPUTS
from mpq.quantization.precision import Precision
from mpq.quantization.ranges import Ranges
from mpq.quantization.steps import Steps
from mpq.workflows.asked_activations import check_choice, check_operands
from mpq.workflows.rules import Rules, Spelled, read_precisions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from mpq.backends.target import Target
    from mpq.hardware_profiles import Profile
    from mpq.network.metric import OutputMetric
    from mpq.problem.split import Split
    from mpq.rounding import WeightRounding
    from mpq.transforms import Transform
    from mpq.tuning import Tuning
    from mpq.workflows.score import Score

DEFAULT_CANDIDATES = ("w2a8", "w3a8", "w4a4", "w4a8", "w5a8", "w6a8", "w8a8")
"""Candidates where neither they nor measurements of the device are given; those that the device
cannot run are left out."""

METRIC: Final = "kl"
"""How outputs are compared; its type is a word, while the field also takes a metric."""


@final
@dataclass(frozen=True, eq=False)
class Task:
    """A network with its data, and what its layers may become: what every verb is asked about.

    Args:
        model: In evaluation mode, on any device. It is left as found: weights, gradients, mode,
            hooks, requires_grad, random state.
        calibration: A function or a list that yields batches; see ``Calibration``. What a one-shot
            iterator yields is kept in memory.
        held_out: Examples to measure on, as ``calibration``; default: the last quarter of the
            calibration examples, which are then not used to calibrate.
        device: A name of ``mpq.device_names()``, a path to a profile's JSON, or a profile; latency
            and energy need one.
        candidates: Precisions that a layer may take; default: what the device was measured at; of
            an estimated one, those of ``DEFAULT_CANDIDATES`` that it can run.
        rules: Which layers are quantized, and which precisions are given.
        workload: Examples and tokens at once, for latency and energy.
        metric: How outputs are compared: a name of ``mpq.network.metrics.METRICS``, or a metric.
        ranges: How ranges of weights and activations are chosen.
        rounding: How weights become codes, one of ``mpq.ROUNDINGS`` with options; all but
            ``nearest`` look at the calibration examples, and their codes are kept with the result.
        sequential_rounding: Whether the answer's weights are rounded again in the order in which
            layers are called, each for the network that is quantized so far, where unseen
            calibration examples say that it helps. Needs a rounding that looks at the examples.
        cache: A folder, made if it does not exist, in which codes of weights, estimates and
            measurements are kept under checksums of all that determines them, and found again by a
            later search. Default: they are not.
        workers: Where work that splits is done: ``torchrun`` (the processes of torch.distributed
            share the batches of ranges, second moments and the estimate), ``ray``, ``ray:2`` or
            ``ray://HOST:PORT`` (cells and assignments that are measured). Default: in this process.
        recalibrate: Whether ranges of the answer's inputs are chosen again for what layers read in
            the quantized network, where unseen calibration examples say that it helps.
        transforms: Names of ``mpq.TRANSFORMS`` with options: the network gets other parameters with
            the same function, that lose less when they are rounded. Those that unseen calibration
            examples do not say that they help are not used. Default: none.
        bias_correction: Whether the answer's biases, and norms that are not folded, take back the
            mean error of its layers, where unseen calibration examples say that it helps.
        tune: What is tuned of the answer, a name of ``mpq.TUNINGS`` with options such as
            ``scales``: a share of the calibration examples is then kept from rounding and prices,
            and decides whether it helps. Default: nothing.
        seed: Seed of whatever draws: data sources, estimators, solvers.
        to: Where the result is to run: a target of ``mpq targets``, such as
            ``compressed-tensors``. Layers take what it can hold, in its bytes and its
            arithmetic; candidates default to its own.
        allow_randomness: For a network whose forward draws (dropout, masks, noise): where the
            generators of torch, numpy and Python start in every pass over a batch, so that two
            passes are equal. Default: such a network is refused.
        kv_cache: What keys and values of earlier tokens may be stored in, for how many tokens:
            every causal attention of transformers has a layer ``k_cache`` and one ``v_cache`` then.
            Default: they stay as they came.
        split: Parts of layers that get weights of different bits: ``channels``, ``channels:16``
            (blocks of 16 neighbours), ``blocks:4`` (of channels that are alike), ``columns:128``
            (blocks of inputs), ``groups`` (weights that share a scale), ``heads``, ``heads:tied``
            (of attention), ``activations:128`` (blocks of channels of what layers read), ``steps``
            (what they read at clusters of steps), or ``none``.
        steps: Where a diffusion network is told its step: inputs of layers have ranges for every
            cluster of steps then, and splits of the examples are spread over steps. Default: it
            has none.
        activations: Which are rounded: ``inputs`` of layers, or ``all``: operands of products,
            additions, multiplications and concatenations between layers as well, each a layer
            without a weight that takes the activation part of the candidates.
        score: The user's own judge of a network: a ``Score``, or the name of one that is built in
            (``accuracy``, ``top-5``, ``perplexity``, ``miou``, ``sqnr``, ``psnr``, ``ssim``,
            ``map``). It is asked of all networks that are measured, beside the metric, and is what
            solvers that measure make best. Default: there is none.

    Raises:
        InputError: If something given cannot be used; its subclasses say what.
    """

    model: "nn.Module"
    calibration: Any
    held_out: Any = None
    device: "str | Profile | None" = None
    candidates: Sequence[Spelled] | None = None
    rules: Rules = field(default_factory=Rules)
    workload: Workload = field(default_factory=Workload)
    metric: "str | OutputMetric" = METRIC
    ranges: Ranges = field(default_factory=Ranges)
    rounding: str = "auto"
    sequential_rounding: bool = False
    cache: "Path | str | None" = None
    workers: str | None = None
    recalibrate: bool = False
    transforms: Sequence[str] = ()
    bias_correction: bool = False
    tune: str | None = None
    seed: int = 0
    to: str | None = None
    allow_randomness: int | None = None
    memory: int | str | None = None
    blocks: str | None = None
    kv_cache: KVCache | None = None
    split: str = "none"
    steps: Steps | None = None
    activations: str = INPUTS
    score: "str | Score | None" = None

    def __post_init__(self) -> None:
        for name in ("calibration", "held_out"):
            data = getattr(self, name)
            # A task is asked several times, and an iterator is empty once it was read.
            if isinstance(data, Iterator) and not callable(data):
                object.__setattr__(self, name, list(data))
        # read at once, so that a misspelled name is refused here and not minutes later
        _, _, _, _ = self.output_metric, self.target, self.weight_rounding, self.own_score
        _, _, _ = self.built_transforms, self.tuning, self.built_workers
        _, _ = self.memory_bytes, self.parts
        precisions = self.precisions
        if not precisions:
            raise InputError("candidates is empty; name precisions such as w8a8, or leave it out")
        check_whole("seed", self.seed)
        if self.sequential_rounding and not self.weight_rounding.reads_inputs:
            raise InputError(
                f"sequential_rounding (--sequential-rounding) rounds for the inputs that layers "
                f"meet, and rounding {self.rounding!r} does not look at them: take another one of "
                "`mpq roundings`, such as auto"
            )
        if self.kv_cache is not None:
            self._check_cache()
        if self.steps is not None and self.steps.clusters > 1:
            self._check_steps()
        check_choice(self.activations)
        if self.activations == ALL:
            check_operands(self.built_workers, bool(self.streamed), self.target, precisions)
        seed = self.allow_randomness
        # A truth value is the seed 1 to Python, and hardly what was meant.
        if seed is not None and (isinstance(seed, bool) or not 0 <= seed < 2**63):
            raise InputError(f"allow_randomness is a seed, a whole number from 0 on; got {seed!r}")

    def _check_cache(self) -> None:
        workers = self.built_workers
        if workers is not None and workers.kind == "ray":
            raise InputError(
                "a key-value cache is searched in this process or by torchrun: leave out --workers "
                "ray, or --kv-cache"
            )
        if self.streamed:
            raise InputError(
                "a network that is streamed keeps no key-value cache while it is searched: leave "
                "out kv_cache (--kv-cache), or memory (--memory)"
            )
        from mpq.backends._base import REFUSED  # loads torch
        from mpq.network.kept_tokens import KEPT_NONE

        target, kept = self.target, self.kv_cache and self.kv_cache.kept
        is_unrotated = self.kv_cache is not None and self.kv_cache.before_rotation
        if target is not None and (target.caches == REFUSED or kept != KEPT_NONE or is_unrotated):
            does = "keeps no tokens as they came, and holds keys after their rotation"
            does = "holds none" if target.caches == REFUSED else does
            raise InputError(
                f"a key-value cache is searched (kv_cache, --kv-cache), and {target.name} {does}: "
                "search without a target, or without what it cannot do"
            )

    def _check_steps(self) -> None:
        """Refuses what ranges by cluster are not made for."""
        workers = self.built_workers
        asked = {
            "to (--to): a target holds one range of an input; export the clusters one by one": (
                self.to is not None
            ),
            "kv_cache (--kv-cache)": self.kv_cache is not None,
            "memory (--memory): a network that is streamed has one range of an input": (
                bool(self.streamed)
            ),
            "workers (--workers ray)": workers is not None and workers.kind == "ray",
            "sequential_rounding (--sequential-rounding)": self.sequential_rounding,
            "recalibrate (--recalibrate)": self.recalibrate,
            "tune (--tune)": self.tune is not None,
        }
        for what, is_asked in asked.items():
            if is_asked:
                raise InputError(
                    "inputs have ranges for every cluster of steps (steps, --step), which is not "
                    f"done together with {what}; leave it out, or take --step-clusters 1"
                )

    @cached_property
    def profile(self) -> "Profile | None":
        """The device, loaded."""
        # Within the function, since it loads numpy, and ``mpq --help`` imports this class.
        from mpq.hardware_profiles import load_device

        return load_device(self.device) if isinstance(self.device, str) else self.device

    @property
    def memory_bytes(self) -> int | None:
        """``memory``, read.

        Raises:
            LimitError: If it is no size.
        """
        from mpq.problem.limits import bytes_of  # loads numpy

        return None if self.memory is None else bytes_of("memory", self.memory)

    @cached_property
    def streamed(self) -> str:
        """Why the network is streamed, a sentence; empty: it is not.

        Raises:
            InputError: If it does not fit into ``memory`` and cannot be streamed.
        """
        from mpq.backends.streamed import why_streamed  # loads torch

        formats = {p.weight for p in self.precisions}
        reads_inputs = self.weight_rounding.reads_inputs
        return why_streamed(self.model, self.memory_bytes, formats, reads_inputs)

    @cached_property
    def output_metric(self) -> "OutputMetric":
        """The metric, built."""
        from mpq.network.metrics import METRICS

        return METRICS.build(self.metric) if isinstance(self.metric, str) else self.metric

    @cached_property
    def own_score(self) -> "Score | None":
        """The user's own judge, built.

        Raises:
            InputError: If there is none of that name, or something asked for does not ask it.
        """
        if self.score is None:
            return None
        from mpq.workflows.score import Score  # loads torch

        if self.built_workers is not None and self.built_workers.kind == "torchrun":
            raise InputError(
                "a score (--score) is made of a whole network, and ranks of torchrun share batches "
                "of it: one would ask while the others wait; leave one out, or take --workers ray"
            )
        return Score.built_in(self.score) if isinstance(self.score, str) else self.score

    @cached_property
    def weight_rounding(self) -> "WeightRounding":
        """The rounding, built."""
        from mpq.rounding import ROUNDINGS  # loads torch

        return ROUNDINGS.build(self.rounding)

    @cached_property
    def built_transforms(self) -> "tuple[Transform, ...]":
        """The transformations, built.

        Raises:
            InputError: If one is misspelled, or there twice.
        """
        if not self.transforms:
            return ()
        from mpq.transforms import TRANSFORMS  # loads torch

        if isinstance(self.transforms, str):
            raise InputError(
                f"transforms takes a list; got {self.transforms!r}: write [{self.transforms!r}]"
            )
        is_list = isinstance(self.transforms, Sequence)
        if not is_list or not all(isinstance(name, str) for name in self.transforms):
            raise InputError(
                "transforms takes a list of names of mpq.TRANSFORMS with their options, in order; "
                f"got {self.transforms!r}"
            )
        built = tuple(map(TRANSFORMS.build, self.transforms))
        names = [transform.name for transform in built]
        if len(set(names)) < len(names):
            raise InputError(f"each transformation is done once; got {', '.join(names)}")
        return built

    @cached_property
    def parts(self) -> "Split | None":
        """The split, read."""
        from mpq.problem.split import Split  # loads numpy

        return Split.parse(self.split)

    @property
    def parts_of_weights(self) -> "Split | None":
        """The split, where it is of weights."""
        return self.parts if self.parts and self.parts.of_weights else None

    @cached_property
    def built_workers(self) -> Workers | None:
        """The workers, read."""
        return None if self.workers is None else Workers.parse(self.workers)

    @cached_property
    def tuning(self) -> "Tuning | None":
        """The tuning, built."""
        if self.tune is None:
            return None
        from mpq.tuning import TUNINGS  # loads torch

        return TUNINGS.build(self.tune)

    @cached_property
    def target(self) -> "Target | None":
        """The deployment target, built.

        Raises:
            InputError: If there is none of that name.
        """
        if self.to is None:
            return None
        from torch import nn

        from mpq.backends import target_of  # loads torch

        found = target_of(self.to)
        # What is no network is refused where it is looked at, in the words that are for it.
        return found.fitted(self.model) if isinstance(self.model, nn.Module) else found

    @cached_property
    def given_precisions(self) -> tuple[Precision, ...] | None:
        """``candidates``, read, without what is there twice."""
        return None if self.candidates is None else read_precisions("candidates", self.candidates)

    @cached_property
    def precisions(self) -> tuple[Precision, ...]:
        """Candidates of every layer that has none of its own, in the order given.

        Raises:
            InputError: If the device can run one of the given ones in no layer.
        """
        profile, given = self.profile, self.given_precisions
        # An estimated device has measured none, and prices whatever its formats run.
        own = self.target.candidates if self.target else DEFAULT_CANDIDATES
        default = (profile.precisions if profile else None) or own
        wanted = read_precisions("candidates", default) if given is None else given
        runnable = tuple(p for p in wanted if profile is None or profile.runs_somewhere(p))
        # of the default ones a device runs some; what a user names, it must run
        if profile is not None and (not runnable or (given and len(runnable) < len(wanted))):
            unable = [str(p) for p in wanted if p not in runnable]
            raise InputError(f"{profile.name} runs no layer at {', '.join(unable)}")
        return runnable


def check_task(task: object, verb: str) -> None:
    """Refuses what is no task, such as the model itself.

    Args:
        task: What the verb was given.
        verb: How it is called in ``mpq``, such as ``search``; for the message.

    Raises:
        InputError: If it is something else.
    """
    if not isinstance(task, Task):
        raise InputError(
            f"{verb} takes a Task: mpq.{verb}(mpq.Task(model, data), ...); got a "
            f"{type(task).__name__}"
        )
