"""Tables of the documentation, made from the committed JSON of the benchmarks.

    python scripts/benchmark_tables.py            # prints every table
    python scripts/benchmark_tables.py solvers    # prints one

``mkdocs build`` calls ``on_page_markdown``: a page has ``<!-- table: NAME -->`` where a table goes,
so that no figure is typed. ``TABLES`` at the end names them.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MARK = re.compile(r"<!-- table: ([\w-]+) -->")
NETWORKS = {"resnet20": "ResNet-20", "vit": "ViT", "llama": "Llama"}
RECIPE_NETWORKS = {**NETWORKS, "efficientnet_lite0": "EfficientNet-Lite0"}

Row = list[str]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook of mkdocs: every mark becomes its table."""
    return MARK.sub(lambda mark: TABLES[mark[1]](), markdown)


def demo() -> str:
    """The built-in network's result beside the uniform precisions."""
    rows = (
        [
            row["network"],
            _number(row["held_out_kl_nats"]),
            _percent(row["accuracy"]),
            f"{row['latency_seconds'] * 1e3:.2f}",
            f"{row['weight_bytes'] / 1024:.1f}",
            "yes" if row["is_within_limits"] else "no",
        ]
        for row in _read("demo")["rows"]
    )
    head = [
        "network",
        "KL [nats]",
        "accuracy",
        "latency [ms]",
        "weights [KiB]",
        "within both limits",
    ]
    return _table(head, rows)


def resnet20() -> str:
    """Result, uniform and random assignments at the bytes of uniform precisions."""
    data = _read("resnet20_weights_only")
    rows = (
        _budget_row(budget, bits)
        for budget, bits in zip(data["budgets"], (3, 4, 5, 6), strict=True)
    )
    head = [
        "bytes of uniform",
        "result",
        "uniform",
        "best of 50 random",
        "against uniform",
        "random",
    ]
    return _table(head, rows)


def _budget_row(budget: dict[str, Any], bits: int) -> Row:
    found = (budget["result"], budget[f"uniform_w{bits}"], budget["best_of_50_random"])
    return [
        f"{bits} bits ({budget['limit_bytes'] / 1024:.0f} KiB)",
        *(f"{_number(one['kl_nats'])}, {_percent(one['accuracy'])}" for one in found),
        f"{budget['kl_ratio_to_uniform']:.2f} ×",
        f"{budget['kl_ratio_to_best_random']:.2f} ×",
    ]


def estimators() -> str:
    """Rank correlation, what the optima lose and forward passes, on three networks."""
    data = [_read(f"estimators/{network}-weights") for network in NETWORKS]
    ranks = [one["spearman_at_4_5_6_bits"] for one in data]
    optima = [one["optima_to_best_published"] for one in data]
    passes = [_forward_passes(f"{network}-weights") for network in NETWORKS]
    shared = set.intersection(*(set(rank) for rank in ranks))
    rows = (
        [
            f"`{name}`",
            *(f"{rank[name]:.3f}" for rank in ranks),
            *(f"{lost[name]:.2f}" for lost in optima),
            " / ".join(counts[name] for counts in passes),
        ]
        for name in sorted(shared, key=lambda name: -sum(rank[name] for rank in ranks))
    )
    networks = list(NETWORKS.values())
    ranked = [f"rank: {name}" for name in networks]
    return _table(
        ["estimator", *ranked, *(f"optima: {name}" for name in networks), "forward passes"], rows
    )


def _forward_passes(folder: str) -> dict[str, str]:
    """Of each estimator, from the Markdown table that the benchmark wrote beside its JSON."""
    text = (BENCHMARKS / "estimators" / folder / "estimators.md").read_text(encoding="utf-8")
    head, _, *rows = (
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in text.splitlines()
    )
    return {row[0]: row[head.index("forward passes")] for row in rows}


def pairs() -> str:
    """Rank correlation for pairs of weights and activations."""
    data = [_read(f"estimators/{network}-pairs")["spearman"] for network in NETWORKS]
    shared = set.intersection(*(set(one) for one in data))
    ranked = sorted(shared, key=lambda name: -sum(one[name] for one in data))
    rows = ([f"`{name}`", *(f"{one[name]:.3f}" for one in data)] for name in ranked)
    return _table(["estimator", *NETWORKS.values()], rows)


def refine() -> str:
    """Held-out loss with refinement over that without."""
    data = _read("refine")
    limits = list(data["resnet20"])
    rows = (
        [f"`{limit}`", *(f"{data[name][limit]['refined_to_first']:.2f} ×" for name in NETWORKS)]
        for limit in limits
    )
    return _table(["limit", *NETWORKS.values()], rows)


def sketch_cost() -> str:
    """Time and memory of a sketch, in forward and backward passes over the same examples."""
    data = _read("sketch_cost")
    rows = (
        [
            label,
            f"{data[name]['examples']:,}",
            f"{data[name]['weights and activations']['times']:.2f} ×",
            f"{data[name]['weights and activations']['peak_memory']:.2f} ×",
        ]
        for name, label in NETWORKS.items()
    )
    return _table(["network", "examples", "time", "peak memory"], rows)


def solvers() -> str:
    """How long additive problems take."""
    data = _read("solvers")
    rows = [_solver_row(one, 1, 0.0) for one in data["one_budget"]]
    rows += [_solver_row(one, one["budgets"], one["asked_gap"]) for one in data["several_budgets"]]
    return _table(
        ["layers × precisions", "budgets", "gap asked", "median", "slowest", "proved gap"], rows
    )


def _solver_row(one: dict[str, Any], budgets: int, gap: float) -> Row:
    seconds = [run["wall_s"] for run in one["lagrangian"]]
    gaps = [run["relative_gap"] for run in one["lagrangian"]]
    return [
        f"{one['layers']:,} × {one['precisions']}",
        str(budgets),
        f"{gap:g}",
        f"{median(seconds):.2g} s",
        f"{max(seconds):.2g} s",
        f"{max(gaps):.1g}",
    ]


def milp() -> str:
    """Times of other solvers, in those of ``lagrangian``."""
    data = _read("solvers")["against_milp"]
    names = ("CBC", "HiGHS")
    rows = (
        [
            f"{one['layers']:,} × {one['precisions']}",
            *(f"{one['times_lagrangian'][n]:g} ×" for n in names),
        ]
        for one in data
    )
    return _table(["layers × precisions", *names], rows)


def baselines() -> str:
    """What baselines lose, in units of the optimum."""
    rows = (
        [
            f"{one['layers']:,} × {one['precisions']}",
            f"`{name}`",
            f"{lost['median']:.3f}",
            f"{lost['worst']:.3f}",
        ]
        for one in _read("solvers")["baselines"]
        for name, lost in one["loss_over_optimum"].items()
    )
    return _table(["layers × precisions", "baseline", "median", "worst"], rows)


def interactions() -> str:
    """Exact answers with interactions at the bytes of uniform precisions, on two networks."""
    data = _read("interactions")
    rows = (
        [
            NETWORKS[name],
            limit,
            found["branch_and_bound"]["status"].lower(),
            f"{found['branch_and_bound']['gap']:.1g}",
            _percent(found["additive_optimum_above_exact"]),
        ]
        for name in ("resnet20", "vit")
        for limit, found in data[name].items()
        if isinstance(found, dict)
    )
    return _table(["network", "bytes of", "status", "gap", "additive optimum loses more"], rows)


def solvers_at_scale() -> str:
    """Additive tables and interactions at the size of language models."""
    data = _read("solvers_at_scale")
    rows = (
        [
            row["case"],
            f"{row['moves']:,}",
            str(row.get("rows", "-")),
            str(row["budgets"]),
            _solver(row),
            f"{row['processor_s']:.2f}",
            _number(row["loss"]),
            f"{row['gap']:.1g}",
            row["status"].replace("_", " "),
        ]
        for row in (*data["additive"], *data["interactions"])
    )
    head = [
        "case", "moves", "rows", "budgets", "solver", "processor seconds", "loss [nats]", "gap",
        "status",
    ]  # fmt: skip
    return _table(head, rows)


def many_rows() -> str:
    """Parts of layers: processor seconds, gap and memory."""
    rows = (
        [
            "`Problem`, `auto`" if row["kind"] == "problem" else "arrays",
            f"{row['rows']:,} x {row['precisions']}",
            str(row["budgets"]),
            f"{row['solve']['processor_s']:.1f}",
            f"{row['gap']:.1g}",
            f"{row['most_mib']:,}",
        ]
        for row in _read("many_rows")["rows"]
    )
    head = ["as", "rows", "budgets", "processor seconds", "gap", "most memory [MiB]"]
    return _table(head, rows)


def _solver(row: dict[str, Any]) -> str:
    name = row["solver"]
    return f"`auto`: `{name}`" if row["asked"] == "auto" else f"`{name}`"


def t4_roofline() -> str:
    """The T4's roofline over measured kernels."""
    data = _read("t4_roofline")
    rows = (
        _roofline_row(name, one)
        for name, one in {"all": data["all"], **data["by_precision"]}.items()
    )
    head = [
        "kernels",
        "number",
        "predicted / measured: median",
        "10 to 90 %",
        "error after one factor",
        "rank",
    ]
    return _table(head, rows)


def _roofline_row(name: str, one: dict[str, Any]) -> Row:
    return [
        name,
        str(one["kernels"]),
        f"{one['ratio_median']:.2f} ×",
        f"{one['ratio_10th_percentile']:.2f} to {one['ratio_90th_percentile']:.2f} ×",
        _percent(one["median_absolute_error_after_one_factor"]),
        f"{one['spearman']:.2f}",
    ]


def interpolation() -> str:
    """Entries of measured tables, predicted from all the others."""
    rows = (
        [
            f"`{table}`",
            resource,
            f"{found['all']['entries']:,}",
            _percent(found["all"]["median_absolute_error"]),
            _percent(found["all"]["90th_percentile"]),
            _percent(found["all"]["median_absolute_error_of_the_control"]),
        ]
        for table, resources in _read("interpolation")["tables"].items()
        for resource, found in resources.items()
    )
    return _table(
        ["table", "resource", "entries", "median error", "90th percentile", "median as guess"], rows
    )


def conversions() -> str:
    """Problems with costs between layers."""
    rows = (
        [
            name,
            _range([run["cpu_seconds"] for run in runs]),
            _percent(max(run["used_share_without_pairs"] for run in runs) - 1),
        ]
        for name, runs in _read("conversions").items()
        if isinstance(runs, list)
    )
    return _table(["random chains", "processor seconds", "overrun without the pairs, up to"], rows)


def latency() -> str:
    """Rank correlation and median error of what predicts whole networks' latency."""
    networks = {name: one for name, one in _read("latency").items() if "predictors" in one}
    kinds = {"corrected": "profile", "layers": "sum of layers", "control": "control"}
    kinds["control_fitted"] = "control, fitted"
    rows = (
        [
            name,
            f"{one['measured_ms']['fastest']:.2f} to {one['measured_ms']['slowest']:.2f}",
            *(_rank_and_error(one["predictors"][kind]) for kind in kinds),
        ]
        for name, one in networks.items()
    )
    return _table(["network", "measured [ms]", *kinds.values()], rows)


def _rank_and_error(one: dict[str, Any]) -> str:
    return f"{one['spearman']:.3f}, {_percent(one['median_absolute_error'])}"


def latency_budget() -> str:
    """Searched for a latency, exported and run."""
    rows = (
        [
            f"`{limit}`",
            f"{found['limits']['latency'] * 1e3:.2f}",
            f"{found['predicted_latency_s'] * 1e3:.2f}",
            f"{found['latency_s'] * 1e3:.2f}",
            _number(found["kl_nats"]),
            f"{found['accuracy']:.2%}".replace("%", " %"),
            ", ".join(found["uniform_that_meet"]),
        ]
        for limit, found in _read("latency_budget")["searched"].items()
    )
    head = [
        "limit",
        "is [ms]",
        "predicted",
        "measured",
        "KL [nats]",
        "accuracy",
        "uniform that meet it",
    ]
    return _table(head, rows)


def runtimes() -> str:
    """Milliseconds of uniform networks, by runtime."""
    rows = (
        [
            network,
            runtime,
            ", ".join(f"{name} {ms:.2f}" for name, ms in found["network_ms"].items()),
        ]
        for network, by_runtime in _read("runtimes").items()
        if network != "versions" and isinstance(by_runtime, dict)
        for runtime, found in by_runtime.items()
        if isinstance(found, dict) and "network_ms" in found
    )
    return _table(["network", "runtime", "whole network [ms]"], rows)


def zoo() -> str:
    """What became of the model classes of transformers, by how it ended."""
    found = _read("zoo")
    by_status: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        by_status.setdefault(row["status"], []).append(row)
    rows = [
        [
            status,
            str(len(some)),
            _median([row["layers"] for row in some if row.get("layers")]),
            _median([row["share_in_layers"] for row in some if "share_in_layers" in row]),
            _median(list(_zoo_ratios(some))),
            str(sum(bool(_zoo_auto(row).get("cells_off")) for row in some)),
            str(sum(bool(_zoo_auto(row).get("repaired")) for row in some)),
            _median([x["seconds_processor"] for x in some if "seconds_processor" in x]),
        ]
        for status, some in by_status.items()
    ]
    rows.append(["not tried", str(len(found["not_tried"])), *[""] * 6])
    head = ["ended", "classes", "layers", "share of bytes in layers", "predicted / measured"]
    return _table([*head, "spot check off", "repaired", "processor [s]"], rows)


def _zoo_auto(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = row.get("estimators", {}).get("auto", {})
    return found


def _zoo_ratios(rows: list[dict[str, Any]]) -> Iterator[float]:
    for row in rows:
        ratio = _zoo_auto(row).get("predicted_over_measured")
        if ratio is not None:
            yield ratio


def _median(values: list[float]) -> str:
    return _number(median(values)) if values else ""


def peers() -> str:
    """Other quantizers beside ours, in the same bytes: a row for each file's rows."""
    files = sorted((BENCHMARKS / "peers").glob("*.json"))
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    head = [
        "network", "peer", "how", "bits per weight", "its KL [nats]", "ours", "ours over its",
        "tuned over its", "its seconds", "ours", "tuned",
    ]  # fmt: skip
    rows = (_peer_row(told, row) for told in found for row in told["rows"])
    return _table(head, rows)


def _peer_row(told: dict[str, Any], row: dict[str, Any]) -> Row:
    package = told["package"]
    theirs, ours = row["peer"], row["mpq"]
    return [
        NETWORKS[row["network"]],
        f"{package} {told['versions'][package]}",
        f"{row['setting']}, {row['bits']} bits",
        f"{theirs['bits_per_weight']:.2f}",
        _number(theirs["kl_nats"]),
        _number(ours["kl_nats"]),
        _ratio(row, "ratio"),
        _ratio(row, "ratio_tuned"),
        _number(theirs["processor_seconds"]),
        _number(ours["processor_seconds"]),
        _number(row["mpq_tuned"]["processor_seconds"]) if "mpq_tuned" in row else "",
    ]


def scale_peers() -> str:
    """What choosing formats takes in other packages, beside ours."""
    told = _read("scale_peers")
    head = [
        "package", "how", "its seconds", "its peak [GB]",
        "our ranges", "our search's seconds", "its peak [GB]",
    ]  # fmt: skip
    rows = (
        [
            f"{peer['package']} {peer['versions'][peer['package']]}",
            label,
            *_cost(row),
            f"`{row['beside']}`",
            *_cost(told["mpq"][row["beside"]]["search"]),
        ]
        for peer in told["peers"].values()
        for label, row in peer["rows"].items()
    )
    return _table(head, rows)


def _cost(row: dict[str, Any]) -> Row:
    return [_number(row["cpu_seconds"]), f"{row['peak_bytes'] / 1e9:.2f}"]


def _ratio(row: dict[str, Any], name: str) -> str:
    """With its interval; empty where it was not asked for."""
    if name not in row:
        return ""
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def patches() -> str:
    """Networks without patches and by the best ones, with the input held and streamed."""
    rows = (
        [
            f"{row['network']}, {row['size']} x {row['size']}",
            "streamed" if row["is_input_streamed"] else "held",
            f"{row['whole_ram_bytes'] / 1024:.0f}",
            f"{row['ram_bytes'] / 1024:.0f}",
            f"{row['num_patches']} x {row['num_patches']}",
            "x".join(map(str, row["shape"])),
            _percent(row["recomputed_share"]),
            f"{row['largest_difference']:.0e}",
        ]
        for row in _read("patches")["rows"]
    )
    head = [
        "network, image",
        "input",
        "peak RAM [KiB]",
        "by patches [KiB]",
        "patches",
        "output of the cut",
        "MACs done again",
        "difference",
    ]
    return _table(head, rows)


def recipes() -> str:
    """What each recipe loses in units of the default: geometric means over bits and networks."""
    losses = {(x["network"], x["bits"], x["recipe"]): x.get("kl_nats") for x in _recipe_rows()}
    named = {x["recipe"] for x in _recipe_rows() if x.get("overrides") == []}
    own = {name for name in named if "+" not in name} - {"default", "uniform"}
    networks = [name for name in RECIPE_NETWORKS if any(key[0] == name for key in losses)]
    found = {}
    for recipe in dict.fromkeys(key[2] for key in losses):
        ratios = {
            name: [
                loss / (losses[name, bits, "default"] or 1.0)
                for (network, bits, other), loss in losses.items()
                if (network, other) == (name, recipe) and loss
            ]
            for name in networks
        }
        if any(ratios.values()):
            found[recipe] = ratios
    overall = {
        name: geometric_mean([x for each in ratios.values() for x in each])
        for name, ratios in found.items()
    }
    rows = (
        [
            f"`{recipe}`",
            "own" if recipe in own else "",
            *(_mean_of(found[recipe][name]) for name in networks),
            _number(overall[recipe]),
        ]
        for recipe in sorted(found, key=overall.__getitem__)
    )
    return _table(["", "candidates", *map(RECIPE_NETWORKS.__getitem__, networks), "all"], rows)


def _mean_of(ratios: list[float]) -> str:
    """With the number of limits that were met, where these are not all three."""
    if not ratios:
        return "-"
    return _number(geometric_mean(ratios)) + (f" ({len(ratios)})" if len(ratios) < 3 else "")


def recipe_losses() -> str:
    """What the default loses, and with rounding to nearest, beside uniform precisions."""
    shown = ("default", "default+groups", "default+nearest", "uniform")
    rows = [x for x in _recipe_rows() if x["recipe"] in shown]
    table = (
        [RECIPE_NETWORKS[network], f"`{recipe}`", *(
            _number(x["kl_nats"]) for x in rows if (x["network"], x["recipe"]) == (network, recipe)
        )]
        for network, recipe in dict.fromkeys((x["network"], x["recipe"]) for x in rows)
    )  # fmt: skip
    return _table(["", "", "3 bits", "4 bits", "5 bits"], table)


def _recipe_rows() -> list[dict[str, Any]]:
    files = (BENCHMARKS / "recipes" / f"{name}.json" for name in RECIPE_NETWORKS)
    return [row for file in files if file.is_file() for row in json.loads(file.read_text())["rows"]]


def _read(name: str) -> Any:
    return json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8"))


def _table(head: Row, rows: Iterable[Row]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: Row, rows: Iterable[Row]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def _range(values: list[float]) -> str:
    return f"{min(values):.2g} to {max(values):.2g}"


def _number(value: float) -> str:
    return f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "resnet20": resnet20,
    "estimators": estimators,
    "pairs": pairs,
    "refine": refine,
    "sketch-cost": sketch_cost,
    "solvers": solvers,
    "milp": milp,
    "baselines": baselines,
    "interactions": interactions,
    "solvers-at-scale": solvers_at_scale,
    "many-rows": many_rows,
    "t4-roofline": t4_roofline,
    "interpolation": interpolation,
    "conversions": conversions,
    "latency": latency,
    "latency-budget": latency_budget,
    "runtimes": runtimes,
    "zoo": zoo,
    "peers": peers,
    "scale-peers": scale_peers,
    "patches": patches,
    "recipes": recipes,
    "recipe-losses": recipe_losses,
}
"""Every table by the name that pages mark it with."""


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TABLES:
        print(f"{wanted}\n\n{TABLES[wanted]()}\n")
