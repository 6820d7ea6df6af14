"""The words of the command line: every option with its type and help, none with a default."""

from pathlib import Path
from typing import Annotated

import typer

LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log",
        help="File that events are appended to meanwhile, a line of JSON each: phases, progress, "
        "what is measured, the outcome.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="Network: package.module:callable, path/to/file.py:callable, or a folder of "
        "Hugging Face, whose weights are mapped."
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="Weights: .safetensors, or a torch file of tensors only.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Function that yields calibration batches, named as --model, or a source that needs "
        "no data: batch-norm:shape=3x32x32, random-tokens, self-generated. See `mpq sources`."
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(help="Function that yields held-out batches. Default: a quarter of --data."),
]
ExportEvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        help="Function that yields held-out batches, which the file is run with. Default: --data.",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device (see `mpq devices`), or path/to/profile.json or .csv.")
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="latency=2.5ms, weight_bytes=300KiB, latency=0.6x:w8a8, with --to file_bytes=3.2GB, "
        "... Can be given repeatedly.",
    ),
]
Outputs = Annotated[
    str | None,
    typer.Option(
        help="Several outputs by path: logits=kl,pred_boxes=squared-error:relative=true*5; "
        "*.boxes: of all images of a list. Instead of --metric."
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="Where the result is to run, such as compressed-tensors: only what that target can "
        "hold, in its bytes and arithmetic. See `mpq targets`."
    ),
]
Sections = Annotated[
    list[str] | None,
    typer.Option("--section", help="A further report section, with options. See `mpq sections`."),
]
Precisions = Annotated[
    str | None,
    typer.Option(
        help="Candidates: w4a4,w4a8,w8a8. Default: what the device runs, or was measured at "
        "(`default`, where a recipe has others)."
    ),
]
Sensitivity = Annotated[
    str, typer.Option(help="Estimator with options: sketch:num_probes=4. See `mpq estimators`.")
]
SolverName = Annotated[
    str,
    typer.Option("--solver", help="Solver with options: ilp:time_limit_s=60. See `mpq solvers`."),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="A published system, of `mpq recipes`: its settings, but for those given here.",
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        help="A published system instead of estimators: what its answer loses, beside the "
        "default's. Can be given repeatedly.",
    ),
]
Safeguard = Annotated[
    bool,
    typer.Option(
        "--safeguard/--no-safeguard",
        help="Take another answer where that loses less on held-out examples than the solver's.",
    ),
]
Refine = Annotated[
    int,
    typer.Option(help="Rounds of estimating anew at the assignment found (not for a frontier)."),
]
Include = Annotated[list[str] | None, typer.Option(help="Glob: quantize only these layers.")]
Exclude = Annotated[list[str] | None, typer.Option(help="Glob: leave these layers as they are.")]
Fix = Annotated[list[str] | None, typer.Option(help="GLOB=PRECISION: not the solver's choice.")]
Ends = Annotated[
    str | None,
    typer.Option(help="Precision of the first and the last layer (--fix goes first), or none."),
]
Allow = Annotated[
    list[str] | None, typer.Option(help="GLOB=P1,P2: candidates of these layers, or none.")
]
Tie = Annotated[
    list[str] | None, typer.Option(help="Glob: these layers share one precision, or none.")
]
TieBlocks = Annotated[
    bool,
    typer.Option("--tie-blocks/--no-tie-blocks", help="Layers of one block share one precision."),
]
TieInner = Annotated[
    bool,
    typer.Option(
        "--tie-inner/--no-tie-inner",
        help="All layers but the first and the last share one precision.",
    ),
]
FindTies = Annotated[
    bool, typer.Option("--find-ties/--no-find-ties", help="Tie layers that read one tensor.")
]
Metric = Annotated[
    str, typer.Option(help="kl; for outputs that are no probabilities squared-error or cosine.")
]
AsSearchedMetric = Annotated[
    str | None, typer.Option("--metric", help="See `mpq search`. Default: as in the search.")
]
Fold = Annotated[bool, typer.Option("--fold/--no-fold", help="Fold BatchNorm first.")]
BatchSize = Annotated[int, typer.Option(help="Examples at once, for latency and energy.")]
Phase = Annotated[
    str | None,
    typer.Option(help="Price for prefill (a whole prompt) or decode (one new token)."),
]
Tokens = Annotated[
    int | None, typer.Option(help="Tokens of the prompt, for --phase prefill. Default: as traced.")
]
WeightRange = Annotated[
    str, typer.Option(help="mse, minmax, percentile, ... with options. See `mpq ranges`.")
]
ActivationRange = Annotated[
    str, typer.Option(help="mse, loss, minmax, percentile, ... with options. See `mpq ranges`.")
]
Rounding = Annotated[
    str,
    typer.Option(help="How weights become codes: auto, nearest, ... See `mpq roundings`."),
]
SequentialRounding = Annotated[
    bool,
    typer.Option(
        "--sequential-rounding",
        help="Round the answer again, layer by layer, for inputs of the network quantized so far.",
    ),
]
Split = Annotated[
    str,
    typer.Option(
        "--split",
        help="Bits inside layers: channels, channels:16 (blocks of neighbours), blocks:4 (of "
        "channels that are alike), columns:128 (blocks of inputs), groups, heads or heads:tied (of "
        "queries, keys and values), activations:128 (blocks of what layers read), steps (what they "
        "read by cluster of --step), or none.",
    ),
]
Recalibrate = Annotated[
    bool,
    typer.Option(
        "--recalibrate",
        help="Choose ranges of inputs again, for what the answer's quantized layers read.",
    ),
]
Cache = Annotated[
    str | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Keep codes, estimates and measurements in a folder, for the next search.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Do the first batch only, and say what every phase of the search will take: seconds "
        "and memory.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        help="What the search may take, as 10min: fewer examples, then rounding to nearest, then "
        "an estimate without data, until it fits. What is given up is told."
    ),
]
ShardOf = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="NUMBER/COUNT",
        help="Do this share of the estimate's batches only, as 1/4, and leave it in --cache DIR; a "
        "search without --shard goes on from all of them.",
    ),
]
PartFiles = Annotated[
    list[Path], typer.Argument(help="Files that jobs with --shard wrote: DIR/*.part, all of them.")
]
MergedInto = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="DIR",
        help="Folder for what comes out, which `mpq search --cache DIR` reads. Default: that of "
        "the first part.",
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        help="Who does work that splits: ray, ray:2, ray://HOST:PORT, torchrun. Default: this "
        "process; the ranks, where torchrun started it."
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="What the process may hold, such as 8GiB: a network that takes more is streamed.",
    ),
]
Blocks = Annotated[
    str | None,
    typer.Option(
        "--blocks",
        metavar="PATH",
        help="List of modules that streaming runs one by one, such as model.layers. "
        "[default: the largest]",
    ),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Move the answer's biases so that layers have the float network's mean outputs.",
    ),
]
Tune = Annotated[
    str | None,
    typer.Option(
        help="Tune the answer, a quarter of --data being kept to decide: scales, all, or none. "
        "See `mpq tunings`."
    ),
]
Transform = Annotated[
    str | None,
    typer.Option(
        help="Equivalent transformations, with commas: rotate, smooth, ..., or none. See "
        "`mpq transforms`."
    ),
]
Activations = Annotated[
    str,
    typer.Option(
        help="Which are rounded: inputs (of layers), or all (operands between layers, too).",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        help="Of whatever draws: data sources, estimators, solvers; another one draws anew."
    ),
]
AllowRandomness = Annotated[
    int | None,
    typer.Option(
        "--allow-randomness",
        help="Seed that the generators start from in every pass, for a network that draws.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the answer, and nothing else.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the answer as JSON on standard output.")
]
AssignmentFile = Annotated[Path, typer.Argument(help="assignment.json of a search, or its folder.")]
Resource = Annotated[
    str | None, typer.Option(help="Frontier over this resource. Default: of the first limit.")
]
Points = Annotated[int, typer.Option(help="Limits that the frontier is solved for.")]
Hull = Annotated[
    bool, typer.Option("--hull", help="The frontier's whole convex hull (additive losses).")
]
Minimize = Annotated[
    str | None,
    typer.Option(help="Resource to make small, within limits; needs one of the --max options."),
]
MaxPredicted = Annotated[
    float | None, typer.Option("--max-loss", help="Largest predicted loss, for --minimize.")
]
MaxMeasured = Annotated[
    float | None,
    typer.Option("--max-measured-loss", help="Largest loss measured on held-out examples."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-accuracy-drop", help="Largest measured drop of accuracy; 0.01: a point."),
]
MaxScoreDrop = Annotated[
    float | None,
    typer.Option("--max-score-drop", help="How much worse --score may be, for --minimize."),
]
Alternatives = Annotated[
    int, typer.Option(help="So many of the best assignments, measured: alternatives.csv.")
]
SolvedMinimize = Annotated[
    str | None,
    typer.Option("--minimize", help="Resource to make small, within limits; needs --max-loss."),
]
SolvedAlternatives = Annotated[
    int, typer.Option("--alternatives", help="So many of the best assignments, one after another.")
]
Additive = Annotated[
    bool, typer.Option("--additive", help="Leave out what pairs of layers lose together.")
]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Layers of a CSV may lack precisions, or costs at some."),
]
Differing = Annotated[
    int, typer.Option(help="In how many layers any two alternatives differ at least.")
]
TableFile = Annotated[
    Path,
    typer.Argument(
        help="problem.json of a search, its folder, or a CSV: layer,precision,loss_nats,..."
    ),
]
Output = Annotated[Path, typer.Option(help="Folder for the results.")]
Estimators = Annotated[
    list[str] | None,
    typer.Option("--estimator", help="Estimator with options; can be given repeatedly."),
]
RandomAssignments = Annotated[int, typer.Option(help="Random assignments near every limit.")]
SaveBench = Annotated[
    Path | None,
    typer.Option(
        help="File for assignments, random and structured, with what each was measured to lose: "
        "for `mpq evolve-proxy`."
    ),
]
MaxLoss = Annotated[
    float, typer.Option(help="Assignments that lose more are left out of correlations.")
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Try every frontier point on held-out data.")
]

RuntimeName = Annotated[
    str,
    typer.Option("--runtime", help="Runtime with options: onnxruntime:num_threads=2."),
]
NumNetworks = Annotated[
    int, typer.Option(help="Networks at mixed precisions to correct the sums with.")
]
Rounds = Annotated[int, typer.Option(help="How often everything is run.")]
MaxInterval = Annotated[
    float, typer.Option(help="Accepted half width of a 95 % interval, relative to the median.")
]
Clock = Annotated[
    str | None,
    typer.Option(help="cpu (processor time) or wall. Default: cpu for one thread."),
]
ProfileFile = Annotated[
    Path, typer.Option("--output", help="The profile; beside it PATH.journal until it is finished.")
]
