"""The commands that make and serve pictures: `data-prep fabricate` and `data-prep serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.cli.console import EXAMPLE, answer, find_corpus, json_option, name_argument

if TYPE_CHECKING:
    from data_prep.corpus import Corpus


@click.command(epilog=EXAMPLE + "data-prep serve pictures/ --port 8000")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0: any free port, which is printed.")
@click.option("--while-locked", type=click.Path(path_type=Path), help="End once no process holds this lock file.")
def serve(path: Path, host: str, port: int, while_locked: Path | None) -> None:
    """Serve image files, or the images of a Parquet file, over HTTP until Ctrl-C.

    \b
    An image file's URL is its path below PATH; images in a Parquet file are numbered from 0:
      http://HOST:PORT/holiday/1.jpg
      http://HOST:PORT/table.parquet/17   (also where PATH is table.parquet itself)
    """
    from data_prep.serve import ImageServer

    server = ImageServer(path, host, port)
    if while_locked is not None:
        server.end_without_users(while_locked)
    click.echo(f"serving {path} at {server.url} (Ctrl-C ends it)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


@click.group()
def fabricate() -> None:
    """Make a corpus out of nothing: pictures to serve, the list of their URLs, and evaluation tasks."""


@fabricate.command(
    epilog=EXAMPLE + "data-prep fabricate scenes demo --evaldata evaldata --base-url http://127.0.0.1:8000"
)
@name_argument
@click.option("--evaldata", type=click.Path(path_type=Path), required=True, help="Folder for the evaluation tasks.")
@click.option("--base-url", required=True, help="Where the pictures will be served.")
@click.option("--scenes", type=click.IntRange(1), default=6400, help="Training scenes.")
@click.option("--evaluation-scenes", type=click.IntRange(1), default=960, help="Held-out scenes.")
@click.option("--seed", type=int, default=0, help="Another seed, another corpus.")
@click.option("--processes", type=click.IntRange(1), help="Drawing processes.  [default: one per core]")
@json_option
@click.pass_obj
def scenes(root: Path, name: str, as_json: bool, **options: Any) -> None:
    """Draw scenes of coloured shapes with captions; some combinations are kept for evaluation."""
    from data_prep.fabricate import fabricate_scenes

    _fabricate(fabricate_scenes, "drawing", find_corpus(name, root), as_json, options)


@fabricate.command(
    epilog=EXAMPLE + "data-prep fabricate emoji emoji --data DIR --evaldata evaldata --base-url http://127.0.0.1:8000"
)
@name_argument
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder with emoji_images.parquet and emoji_annotations.parquet.",
)
@click.option("--evaldata", type=click.Path(path_type=Path), required=True, help="Folder for the evaluation tasks.")
@click.option("--base-url", required=True, help="Where the pictures will be served.")
@click.option("--held-out-style", default="openmoji", help="The drawing style that training never sees.")
@click.option("--seed", type=int, default=0, help="Another seed, another corpus.")
@json_option
@click.pass_obj
def emoji(root: Path, name: str, as_json: bool, **options: Any) -> None:
    """Caption emoji in several drawing styles; one style is kept for evaluation."""
    from data_prep.fabricate import fabricate_emoji

    _fabricate(fabricate_emoji, "preparing", find_corpus(name, root), as_json, options)


def _fabricate(
    make: Callable[..., dict[str, Any]], what: str, corpus: Corpus, as_json: bool, options: dict[str, Any]
) -> None:
    from data_prep.progress import progress

    with progress(f"{what} images") as report:
        result = make(corpus.folder, options.pop("evaldata"), progress=report, **options)
    text = "\n".join(f"{key}: {value}" for key, value in result.items())
    answer(as_json, result, f"made {corpus.folder}\n{text}")
