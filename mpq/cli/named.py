"""What a command loaded, as made.json and the page name it."""

from typing import TYPE_CHECKING

from mpq.cli.task_options import DEMO_DATA, SourceOptions, held_out_spec

if TYPE_CHECKING:
    from mpq.cli.requests import SearchOptions


def named(source: SourceOptions, eval_data: str | None) -> dict[str, str]:
    """Network, weights, calibration and held-out examples, as far as the command line names them.

    Args:
        source: The network and its calibration examples.
        eval_data: What ``--eval-data`` names.
    """
    model = f"{source.model}, the built-in demonstration" if source.is_demo else source.model
    found = {
        "network": model,
        "weights": None if source.weights is None else str(source.weights),
        "calibration": source.data or (DEMO_DATA if source.is_demo else None),
        "held_out": held_out_spec(eval_data, source.is_all_demo),
    }
    return {what: name for what, name in found.items() if name is not None}


def named_in(options: "SearchOptions") -> dict[str, str]:
    """The same of a search, whose recipe may make the calibration examples itself."""
    from mpq.workflows.own_examples import source_of

    asked = options.asked
    found = named(asked.source, asked.eval_data)
    if options.how.makes_examples and not source_of(asked.source.data or ""):
        found["calibration"] = f"made by the recipe {options.how.recipe}"
    return found
