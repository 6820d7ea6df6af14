"""Commands that put an assignment to work: weights, files for other tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mpq.cli.app import app, reporting_errors
from mpq.cli.options import AssignmentFile, Data, ExportEvalData
from mpq.cli.taking import taking
from mpq.cli.talk import TalkOptions, write
from mpq.cli.task_options import (
    DEMO,
    DEMO_DATA,
    AsSearchedOptions,
    AssignedOptions,
    held_out_spec,
)
from mpq.workflows.task import Task


@app.command()
@reporting_errors
@taking
def quantize(
    assignment: AssignmentFile,
    output: Annotated[Path, typer.Option(help="Where the rounded weights go.")] = Path(
        "quantized.safetensors"
    ),
    *,
    on: AssignedOptions,
    talk: TalkOptions,
) -> None:
    """Write the network's weights as they are in the assigned formats (BatchNorm folded)."""
    from mpq.workflows.quantized_file import save_quantized

    found = on.assignment(assignment)
    files = save_quantized(on.network(), found, output, on.memory)
    talk.answer({"files": [str(file) for file in files]}, lambda _: talk.wrote(files))


@dataclass(frozen=True, eq=False)
class HeldOptions:
    """What is written of an assignment that no file of a tool holds as it is."""

    channels: Annotated[
        str | None,
        typer.Option(
            help="Weights whose channels differ in bits: divide (a layer for each width) or widen "
            "(all in the widest). Default: refused."
        ),
    ] = None
    cluster: Annotated[
        int | None,
        typer.Option(
            help="Of a network with ranges by step: write it with those of one cluster, from 0 on."
        ),
    ] = None


@app.command()
@reporting_errors
@taking
def export(
    assignment: AssignmentFile,
    to: Annotated[
        str,
        typer.Option(
            help="Backend with options: text:style=csv, onnx, gguf. See `mpq backends`, `targets`."
        ),
    ] = "text",
    data: Data = None,
    eval_data: ExportEvalData = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File, or a target's folder. Default: standard output, for text."),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(help="vllm: print what it needs of a compressed-tensors folder (not run)."),
    ] = None,
    *,
    on: AssignedOptions,
    held: HeldOptions,
    compared: AsSearchedOptions,
    talk: TalkOptions,
) -> None:
    """Write an assignment for another tool: bits as text, or the network as ONNX or a target's."""
    from mpq.backends import export as run
    from mpq.backends import file_backend
    from mpq.backends.vllm import serving
    from mpq.cli.loading import load_data, refuse_missing_data
    from mpq.errors import InputError

    found, backend = on.assignment(assignment), file_backend(to)
    found = found if held.cluster is None else found.of_cluster(held.cluster)
    told = serving(serve, backend, found)
    if output is None and backend.needs_network:
        raise InputError(f"a file of {backend.name} needs --output: where it goes")
    if eval_data is not None and not backend.needs_network:
        raise InputError(f"{backend.name} runs nothing: leave out --eval-data")
    if output is None:
        # ``write`` ends the last line itself.
        text = backend.export(found, None, None).content.decode().removesuffix("\n")
        talk.answer({"text": text}, lambda _: write(text))
        return
    # Before the model is loaded, which may take long and runs the user's code.
    if backend.needs_network and data is None and on.model != DEMO:
        refuse_missing_data(on.model, "calibration")
    # For bit widths as text neither the model nor its data is needed.
    loaded = on.network() if backend.needs_network else None
    tested = held_out_spec(eval_data, on.model == DEMO and data is None)
    examples, held_out = (
        None if loaded is None or spec is None else load_data(spec, loaded, Task.seed)
        for spec in (data or DEMO_DATA, tested)
    )
    as_searched = (compared.spelled, compared.allow_randomness)
    made = run(
        found, output, backend, loaded, examples, *as_searched, held_out, on.memory, held.channels
    )
    answer = {
        "path": str(made.path),
        "verdict": made.verdict,
        "deviation_in_standard_deviations": made.deviation,
        **({"serving": told} if told else {}),
    }
    lines = [f"wrote {made.path}", *filter(None, [made.verdict]), *told]
    talk.answer(answer, lambda _: write("\n".join(lines)))
