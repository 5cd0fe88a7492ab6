"""The `flan-tune` command. Each command's work lives in its own module here and is imported when it runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flan_tune.errors import EXIT_WRONG_INPUT, FlanTuneError, disk_fault

app = typer.Typer(
    help="Instruction tuning with Flan mixtures and UL2R: registry, packs, ZeRO-3 training, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tasks_app = typer.Typer(help="The registry of tasks: list, show, check, lint, new.", no_args_is_help=True)
mixture_app = typer.Typer(help="Mixtures: show.", no_args_is_help=True)
mirror_app = typer.Typer(help="The data root: pull.", no_args_is_help=True)
checkpoint_app = typer.Typer(help="Checkpoints of a run: list, verify.", no_args_is_help=True)
app.add_typer(tasks_app, name="tasks")
app.add_typer(mixture_app, name="mixture")
app.add_typer(mirror_app, name="mirror")
app.add_typer(checkpoint_app, name="checkpoint")


class Engine(StrEnum):
    """Who does the work of `prepare`."""

    local = "local"
    ray = "ray"


class ExportFormat(StrEnum):
    """Of the file that `export` writes."""

    jsonl = "jsonl"
    parquet = "parquet"


class ExportColumns(StrEnum):
    """What `export` writes of an example: all of it, or what TRL reads."""

    full = "full"
    prompt_completion = "prompt_completion"


RecipeArgument = Annotated[Path, typer.Argument(help="Recipe YAML.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides: section.key=value.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
TaskPaths = Annotated[list[Path] | None, typer.Option("--task-path", help="Folder with cards of your own.")]
ModeToken = Annotated[
    str | None,
    typer.Option("--mode-token", help="[S2S], [NLU] or [NLG] before every prompt, or none; else the model's own."),
]
DataRoot = Annotated[str | None, typer.Option("--data-root", help="Data in the hub's layout; else FLAN_TUNE_DATA.")]


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None, as_json: Json = False) -> None:
    """Find everything wrong with a recipe before any data is read: one message, all faults."""
    from flan_tune.cli.recipe_commands import check_command

    raise typer.Exit(check_command(recipe, overrides or [], as_json=as_json))


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    packs: Annotated[str | None, typer.Option("--packs", help="Folder for the packs (recipe: data.packs_dir).")] = None,
    num_proc: Annotated[
        int | None, typer.Option("--num-proc", min=1, help="Processes; else one, with ray all CPUs of the cluster.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="I/N", help="Only windows w with w mod N = I; for job arrays.")
    ] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="ray: the cluster of RAY_ADDRESS.")] = Engine.local,
    repair: Annotated[bool, typer.Option("--repair", help="Check finished windows; remake what is damaged.")] = False,
    as_json: Json = False,
) -> None:
    """Render, tokenise and pack the examples of a recipe. Goes on where an interrupted run stopped."""
    from flan_tune.cli.recipe_commands import prepare_command

    how = {"num_proc": num_proc, "shard": _shard(shard), "engine": engine.value, "repair": repair}
    prepare_command(recipe, overrides or [], packs=packs, as_json=as_json, **how)


def _shard(text: str | None) -> tuple[int, int]:
    """'1/4' -> (1, 4): the second of four shards."""
    index, _, count = (text or "0/1").partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise typer.BadParameter(f"{text!r} is not I/N with I from 0 to N - 1, as 0/4 to 3/4.", param_hint="--shard")


@app.command()
def inspect(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    pack: Annotated[int | None, typer.Option("--pack", min=0, help="Pack number.")] = None,
    step: Annotated[int | None, typer.Option("--step", min=0, help="All packs of one step, in short.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="The first pack that holds this task.")] = None,
    packs: Annotated[str | None, typer.Option("--packs", help="Folder of the packs.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in a pack: segments, what may see what, inputs and targets told apart, provenance."""
    from flan_tune.cli.inspect import inspect_command

    inspect_command(recipe, overrides or [], pack=pack, step=step, task=task, packs=packs, as_json=as_json)


@app.command()
def verify(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    pack: Annotated[
        int | None, typer.Option("--pack", min=0, help="The pack whose mask is drawn; it and the next 3 are compared.")
    ] = None,
    packs: Annotated[str | None, typer.Option("--packs", help="Folder of the packs.")] = None,
    as_json: Json = False,
) -> None:
    """Check a model on its packs: no leaks, packed equals alone, accumulation changes nothing. Draws a pack's mask."""
    from flan_tune.cli.verify import verify_command

    raise typer.Exit(verify_command(recipe, overrides or [], pack=pack, packs=packs, as_json=as_json))


@app.command()
def export(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    *,
    file_format: Annotated[ExportFormat, typer.Option("--format", help="Form of the file.")] = ExportFormat.jsonl,
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="How many; else as many as the recipe's packs hold.")
    ] = None,
    columns: Annotated[
        ExportColumns, typer.Option("--columns", help="prompt_completion: the two columns that TRL reads.")
    ] = ExportColumns.full,
    packs: Annotated[str | None, typer.Option("--packs", help="Folder of the packs.")] = None,
    as_json: Json = False,
) -> None:
    """Write the rendered examples of a recipe's mixture with their provenance, for training with anything else."""
    from flan_tune.cli.export import export_command

    export_command(
        recipe,
        overrides or [],
        file_format=file_format.value,
        out=out,
        num_examples=examples,
        columns=columns.value,
        packs=packs,
        as_json=as_json,
    )


@app.command()
def contamination(
    mixture: Annotated[Path, typer.Argument(help="Mixture YAML.")],
    suites: Annotated[
        str | None,
        typer.Option("--suites", help="mmlu,bbh,tydiqa,mgsm,gsm8k or tasks with a split test; else those found."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for report and removal file; else contamination/<mixture>.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Only the first rows of each task.")] = None,
    num_proc: Annotated[int, typer.Option("--num-proc", min=1, help="Processes.")] = 1,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Find the rows of a mixture that hold test questions; write a report and a file of rows to leave out."""
    from flan_tune.cli.contamination import contamination_command

    contamination_command(
        mixture,
        suites,
        [str(p) for p in task_path or []],
        data_root,
        out=out,
        rows=rows,
        num_proc=num_proc,
        as_json=as_json,
    )


@app.command()
def run(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline YAML.")],
    as_json: Json = False,
) -> None:
    """Run the stages of a pipeline: finished ones are skipped, an interrupted one is resumed."""
    from flan_tune.cli.pipeline import run_command

    raise typer.Exit(run_command(pipeline, as_json=as_json))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt; else one per line from stdin.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64,
    mode_token: ModeToken = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    as_json: Json = False,
) -> None:
    """Answer prompts with an exported model, attending as it was trained (a prefix-LM reads its prompt both ways)."""
    from flan_tune.cli.generate import generate_command

    generate_command(
        model,
        prompt or [],
        max_new_tokens=max_new_tokens,
        mode_token=mode_token,
        temperature=temperature,
        seed=seed,
        as_json=as_json,
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a model.")],
    suites: Annotated[
        str, typer.Option("--suites", help="procedural, gsm8k, mmlu, tasks, infilling; several with commas.")
    ] = "procedural",
    rows: Annotated[
        int, typer.Option("--rows", min=1, help="Rows per task (procedural, tasks) or suite; passages (infilling).")
    ] = 50,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Exemplars, for gsm8k and mmlu.")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 64,
    seen_by: Annotated[
        list[Path] | None, typer.Option("--seen-by", help="Recipe whose draws are removed (procedural, tasks).")
    ] = None,
    mode_token: ModeToken = None,
    corpus: Annotated[
        str, typer.Option("--corpus", help="Documents for infilling: text:NAME in the data root.")
    ] = "text:wikipedia_en",
    passage_tokens: Annotated[
        int, typer.Option("--passage-tokens", min=25, help="Length of the passages (infilling).")
    ] = 192,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="Another model, asked for the same spans (infilling).")
    ] = None,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for results.json and samples.jsonl.")] = None,
    as_json: Json = False,
) -> None:
    """Score a model by lm-evaluation-harness; every score with n and its standard error."""
    from flan_tune.cli.evaluate import evaluate_command

    evaluate_command(
        model,
        suites.split(","),
        rows=rows,
        shots=shots,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seen_by=seen_by or [],
        mode_token=mode_token,
        task_paths=[str(p) for p in task_path or []],
        corpus=corpus,
        passage_tokens=passage_tokens,
        compare=compare or [],
        data_root=data_root,
        output=output,
        as_json=as_json,
    )


@app.command()
def report(
    pipeline: Annotated[Path, typer.Argument(help="Pipeline YAML whose results are there.")],
    output: Annotated[Path | None, typer.Option("--output", help="HTML file.")] = None,
) -> None:
    """Write the one-file HTML report of a pipeline's results."""
    from flan_tune.cli.pipeline import report_command

    report_command(pipeline, output)


@tasks_app.command("list")
def tasks_list(
    family: Annotated[str | None, typer.Option("--family", help="Others too: procedural, custom, ...")] = None,
    category: Annotated[str | None, typer.Option("--category", help="Part of a category's name.")] = None,
    language: Annotated[str | None, typer.Option("--language", help="A language, as German.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="A licence id, or 'permissive'.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="Part of a status, as 'on the hub'.")] = None,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """List the tasks, by default those of the four families of the Flan collection."""
    from flan_tune.cli.tasks import Filters, list_command

    filters = Filters(family, category, language, license_, status)
    list_command(filters, [str(p) for p in task_path or []], data_root, as_json=as_json)


@tasks_app.command("show")
def tasks_show(
    name: Annotated[str, typer.Argument(help="Task name; a published name works too.")],
    index: Annotated[int, typer.Option("--index", min=0, help="Row number.")] = 0,
    split: Annotated[str, typer.Option("--split")] = "train",
    style: Annotated[str, typer.Option("--style", help="zero-shot, few-shot, cot, cot-few-shot, ...")] = "zero-shot",
    role: Annotated[str, typer.Option("--role", help="What is asked: answer, question, explanation, ...")] = "",
    shots: Annotated[int | None, typer.Option("--shots", min=0)] = None,
    template: Annotated[str, typer.Option("--template", help="Template id.")] = "",
    no_options: Annotated[bool, typer.Option("--no-options")] = False,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Print the exact text of one row, inputs and targets told apart."""
    from flan_tune.cli.tasks import show_command

    show_command(
        name,
        index=index,
        split=split,
        style=style,
        role=role,
        shots=shots,
        template=template,
        no_options=no_options,
        task_paths=[str(p) for p in task_path or []],
        data_root=data_root,
        as_json=as_json,
    )


@tasks_app.command("check")
def tasks_check(
    pattern: Annotated[str, typer.Argument(help="Which tasks: a name, a pattern with *, family:cot, ...")] = "*",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows of each task.")] = 20,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show rows of every task whose data is there in every presentation; count what is dropped, by reason."""
    from flan_tune.cli.tasks import check_command

    code = check_command(pattern, limit, [str(p) for p in task_path or []], data_root, as_json=as_json)
    raise typer.Exit(code)


@tasks_app.command("lint")
def tasks_lint(
    path: Annotated[Path | None, typer.Argument(help="A card, or a folder of cards; else all there are.")] = None,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Find everything wrong with cards and wordings, each with its line and what to do; exit code 1 for faults."""
    from flan_tune.cli.task_cards import lint_command

    raise typer.Exit(lint_command(path, task_path or [], data_root, as_json=as_json))


@tasks_app.command("new")
def tasks_new(
    name: Annotated[str, typer.Argument(help="Name of the task: letters, digits, _.")],
    rows: Annotated[Path, typer.Option("--from", help="Rows: a .jsonl, .jsonl.gz or .parquet file.")],
    shape: Annotated[str | None, typer.Option("--shape", help="What the rows are, if that cannot be guessed.")] = None,
    to: Annotated[Path, typer.Option("--to", help="Folder for the card.")] = Path("my_tasks"),
    as_json: Json = False,
) -> None:
    """Write a card for rows of your own: the shape and what the columns mean are guessed, and told."""
    from flan_tune.cli.task_cards import new_command

    new_command(name, rows, shape, to, as_json=as_json)


@mixture_app.command("show")
def mixture_show(
    file: Annotated[Path, typer.Argument(help="Mixture YAML.")],
    packs: Annotated[int, typer.Option("--packs", min=1, help="How many packs are drawn, for repeats.")] = 100_000,
    examples_per_pack: Annotated[
        float, typer.Option("--examples-per-pack", min=0.01, help="The manifest of prepared packs states yours.")
    ] = 8.0,
    count_rows: Annotated[
        bool, typer.Option("--count-rows", help="Open every source and count its usable rows; else the cards' counts.")
    ] = False,
    task_path: TaskPaths = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Print the effective share, cap, rows and expected repeats of every task and family of a mixture."""
    from flan_tune.cli.mixtures import show_command

    show_command(
        file,
        [str(p) for p in task_path or []],
        data_root,
        packs=packs,
        examples_per_pack=examples_per_pack,
        count_rows=count_rows,
        as_json=as_json,
    )


@mirror_app.command("pull")
def mirror_pull(
    selector: Annotated[str, typer.Argument(help="family/pattern as 'cot/*', or any task pattern.")],
    to: Annotated[Path, typer.Option("--to", help="The data root to fill.")],
    task_path: TaskPaths = None,
    as_json: Json = False,
) -> None:
    """Fetch the hub datasets of tasks into a data root, for machines without internet. Goes on where it stopped."""
    from flan_tune.cli.mirror import pull_command

    raise typer.Exit(pull_command(selector, to, [str(p) for p in task_path or []], as_json=as_json))


@checkpoint_app.command("list")
def checkpoint_list(
    output_dir: Annotated[Path, typer.Argument(help="output_dir of a run.")], as_json: Json = False
) -> None:
    """List the checkpoints of a run and whether each is complete."""
    from flan_tune.cli.checkpoints import list_command

    list_command(output_dir, as_json=as_json)


@checkpoint_app.command("verify")
def checkpoint_verify(output_dir: Annotated[Path, typer.Argument(help="output_dir of a run.")]) -> None:
    """Compare every file of every checkpoint with its recorded SHA-256."""
    from flan_tune.cli.checkpoints import verify_command

    raise typer.Exit(verify_command(output_dir))


def main() -> None:
    """Runs the command; a user's mistake ends in one message and exit code 1, never in a traceback."""
    try:
        app()
    except FlanTuneError as error:
        print(str(error), file=sys.stderr)
        sys.exit(EXIT_WRONG_INPUT)
    except OSError as error:
        message = disk_fault(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        sys.exit(EXIT_WRONG_INPUT)
    except SystemExit as ending:
        # typer turns Ctrl-C into exit code 130 without a word; what caused it is two exceptions back
        if isinstance(getattr(ending.__context__, "__cause__", None), KeyboardInterrupt):
            print("interrupted; run the same command again to go on.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
