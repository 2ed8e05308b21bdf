"""The command line `neuclip`: parse, resolve the recipe, call. What a command does is in the module that it imports.

Imports are inside the commands: `neuclip --help` must not wait for torch.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, Literal

import click

from pipeline import __version__
from pipeline.cli import chain, eval_data, evaluate, runs, slurm, sync
from pipeline.cli.options import jobs_option, selection_options, sweep_option
from pipeline.commands import Commands
from pipeline.errors import UserError
from pipeline.processes import die_with_parent

OVERRIDES = """\b
Settings are given as key=value with dotted keys, on top of the recipe:
  train.steps=100 objectives.neuclip.rho=6.5 loader.workers=2"""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="neuclip")
def main() -> None:
    """Train and evaluate CLIP models: NeuCLIP and its rivals on DeepSpeed, from image URLs to a report.

    \b
    Start here:
      neuclip demo --workdir demo      the whole chain on images that it draws itself, about ten minutes
      neuclip run RECIPE --workdir DIR the same chain for a recipe
      neuclip status DIR               where it stands, and what to type next
    \b
    Each stage is a command of its own, `data-prep` before these: train, export, evaluate, report.
    """
    if sys.stdout is None:  # closed by who started this (`>&-`)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if "RANK" in os.environ:  # a launcher's worker; torchrun starts them in sessions that a kill of it does not reach
        die_with_parent(os.getppid())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("pipeline").setLevel(logging.INFO)


_workdir = click.option(
    "--workdir",
    required=True,
    type=click.Path(path_type=Path),
    help="Run directory: everything is made in here.",
)
_overrides = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@click.command()
@_workdir
@click.option("--quick", is_flag=True, help="A tenth of the images and steps: shows that everything works, not scores.")
@jobs_option
@_overrides
def demo(workdir: Path, quick: bool, jobs: int, overrides: tuple[str, ...]) -> None:
    """The whole pipeline on images that it draws itself.

    Draws scenes with captions, serves them from a web server on localhost that misbehaves like the web, ingests
    them with img2dataset, trains a small CLIP with NeuCLIP's objective under DeepSpeed on two processes, exports,
    evaluates on unseen combinations, and writes a report. Stopped at any point, the same command goes on; when
    all is done, it says so.
    """
    from pipeline.launch.demo import QUICK

    _run("demo", workdir, (*(QUICK if quick else ()), *overrides), jobs)


@click.command(epilog=OVERRIDES)
@click.argument("recipe")
@_workdir
@sweep_option
@selection_options
@jobs_option
@_overrides
def run(recipe: str, workdir: Path, overrides: tuple[str, ...], **options: Any) -> None:
    """Every stage of RECIPE on this machine.

    Ingest, train, export, evaluate, report. RECIPE is a shipped name (see pipeline/recipes) or a YAML file.
    Stopped at any point, the same command goes on; a changed recipe is refused with the difference. Where an element
    fails, the others of its stage are done and the run ends there: mend the cause, then `neuclip retry DIR`.
    A file DIR/STOP ends it from elsewhere.

    \b
    Examples:
      neuclip run emoji --workdir emoji-run data=FOLDER
      neuclip run demo --workdir rivals --sweep objective=neuclip,fastclip --sweep seed=0,1
    """
    _run(recipe, workdir, overrides, **options)


def _run(
    recipe: str,
    workdir: Path,
    overrides: tuple[str, ...],
    jobs: int,
    sweep: tuple[str, ...] = (),
    first: str | None = None,
    only: str | None = None,
) -> None:
    from pipeline.config.loader import load_recipe
    from pipeline.launch.local import bring_to_done
    from pipeline.launch.outcome import print_outcome
    from pipeline.launch.settle import settle
    from pipeline.launch.sweep import sweep_members

    settled = settle(load_recipe(recipe, overrides), workdir, sweep_members(sweep))
    print_outcome(*bring_to_done(settled, jobs, first, only))


@click.command(epilog=OVERRIDES)
@click.argument("recipe")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Run directory; writes RUN/train.")
@click.option("--dry-run", is_flag=True, help="Show the resolved recipe, steps, memory and traffic; train nothing.")
@click.option("--ranks", type=click.IntRange(1), help="GPUs that --dry-run reckons with; default: train.processes.")
@_overrides
def train(recipe: str, run_dir: Path | None, dry_run: bool, ranks: int | None, overrides: tuple[str, ...]) -> None:
    """Train on a published corpus, or go on where it stopped.

    \b
    One process:     neuclip train demo --run-dir RUN loader.manifest=RUN/corpora/demo
    What it needs:   neuclip train cc12m --dry-run --ranks 8
    Several ranks:   torchrun --standalone --nproc-per-node 2 -m pipeline train demo --run-dir RUN ...
    \b
    Ends with 0 when finished, and with 75 when it was asked to stop (SIGTERM, SIGUSR1, Ctrl-C, a file RUN/STOP)
    and saved; with 76 when a rank hung or was lost; torchrun makes 1 of both. The same command then goes on, from
    the newest checkpoint. 2: it cannot start, or is not healthy.
    """
    from pipeline.config.loader import load_recipe

    config = load_recipe(recipe, overrides)
    if dry_run:
        from pipeline.dry_run import describe

        click.echo(describe(config, ranks or config.train.processes))
        return
    if ranks is not None:
        raise UserError(f"--ranks {ranks} is for --dry-run; torchrun or srun says how many ranks train")
    if run_dir is None:
        raise UserError("--run-dir is missing: say where the run is kept, or ask for a --dry-run")
    from pipeline.training import train

    sys.exit(train(config, run_dir))


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--weights",
    type=click.Choice(["auto", "average", "last"]),
    default="auto",
    show_default=True,
    help="The average over training (train.ema_decay), the last weights, or the average where there is one.",
)
def export(checkpoint: Path, out: Path, weights: Literal["auto", "average", "last"]) -> None:
    """Write CHECKPOINT's weights to OUT, for open_clip.

    CHECKPOINT is a run's train/checkpoints (the newest is taken) or one step-* folder in it.

    \b
    In Python afterwards:
      open_clip.create_model_and_transforms("local-dir:OUT")
    or, with a model name of your own, open_clip.add_model_config("OUT") and then
      open_clip.create_model_and_transforms(NAME, pretrained="OUT/open_clip_model.safetensors")
    """
    from pipeline.engine.export import export as write

    provenance = write(checkpoint, out, weights)
    what = f"{provenance['model']} after {provenance['samples_seen']:,} samples, weights: {provenance['weights']}"
    click.echo(f"{out}: {what}")


@click.command()
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(run_dir: Path) -> None:
    """Write RUN_DIR/report.html, summary.json and figures/.

    From what the stages left there; what has not run yet is said to be missing. The page is one file that needs
    no network. Of a sweep it is compare.html, its members side by side.

    \b
    Example:
      neuclip report runs/birds
    """
    from pipeline.report.build import build_report

    click.echo(build_report(run_dir))


for command in (
    demo,
    run,
    train,
    export,
    evaluate.evaluate,
    evaluate.aggregate,
    eval_data.eval_data,
    sync.sync,
    report,
    chain.status,
    chain.logs,
    chain.retry,
    slurm.submit,
    slurm.cancel,
    chain.work,
    runs.runs,
    runs.compare,
    runs.watch,
    runs.ui,
):
    main.add_command(command)
