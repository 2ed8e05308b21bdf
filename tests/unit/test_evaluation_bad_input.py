"""Models and disks that are not as they should be, data that changes under the reader, and pictures of every sort."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_support import image_bytes, open_folder, run, write_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.functional import to_tensor
from webdataset.autodecode import ImageHandler

from pipeline.errors import UserError
from pipeline.evaluation.reading import read_batches
from pipeline.evaluation.task_run import TaskRun
from pipeline.files import sha256_file
from pipeline.models.model_card import PROVENANCE_FILE
from pipeline.models.two_tower import CONFIG_FILE, WEIGHTS_FILE


class Malice:
    """Pickles to a call that leaves a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.fixture
def work(work: Path) -> Path:
    """Without results."""
    shutil.rmtree(work / "out")
    return work


def change_config(model: Path, **vision: int) -> None:
    config = json.loads((model / CONFIG_FILE).read_text())
    config["model_cfg"]["vision_cfg"].update(vision)
    (model / CONFIG_FILE).write_text(json.dumps(config))


def leave_out(model: Path, name: str) -> None:
    weights = load_file(model / WEIGHTS_FILE)
    del weights[name]
    save_file(weights, model / WEIGHTS_FILE)


def flip_a_bit(model: Path) -> None:
    (model / PROVENANCE_FILE).write_text(
        json.dumps({"model": "m", "weights_sha256": sha256_file(model / WEIGHTS_FILE)})
    )
    content = bytearray((model / WEIGHTS_FILE).read_bytes())
    content[-10] ^= 4
    (model / WEIGHTS_FILE).write_bytes(content)


def truncate(model: Path) -> None:
    os.truncate(model / WEIGHTS_FILE, (model / WEIGHTS_FILE).stat().st_size - 100)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: change_config(model, width=48), r"visual\.class_embedding.*\[32\].*\[48\](?s:.*)and \d+ more"),
        (lambda model: change_config(model, layers=2), r'Missing key\(s\).*"visual\.transformer\.resblocks\.1\.'),
        (lambda model: change_config(model, layers=0), r'Unexpected key\(s\).*"visual\.transformer\.resblocks\.0\.'),
        (lambda model: leave_out(model, "visual.proj"), r'Missing key\(s\) in state_dict: "visual\.proj"'),
        (truncate, r"open_clip_model\.safetensors is torn, or no safetensors file \(.*metadata"),
        (lambda model: (model / WEIGHTS_FILE).write_text("<html>404</html>" * 99), "is torn, or no safetensors file"),
        (flip_a_bit, r"open_clip_model\.safetensors is not what was exported"),
        (lambda model: (model / CONFIG_FILE).write_text("{"), r"cannot load this model.*valid config"),
        (lambda model: (model / CONFIG_FILE).write_text("{}"), "missing 'model_cfg'"),
    ],
)
def test_a_model_that_is_damaged_or_does_not_fit_ends_at_once(
    work: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(work / "model")
    with pytest.raises(UserError, match=message) as caught:
        run(work)
    assert len(str(caught.value)) < 2000
    assert not list((work / "out").glob("*.json"))


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_in_place_of_safetensors_is_never_run(work: Path, dump: Callable[..., None]) -> None:
    for name in (WEIGHTS_FILE, "open_clip_pytorch_model.bin"):
        with open(work / "model" / name, "wb") as stream:
            dump({"state_dict": Malice(work / "trace")}, stream)
    with pytest.raises(UserError, match=r"no safetensors file .* Nothing in it was run"):
        run(work)
    assert not (work / "trace").exists()


def append_to_the_last_shard(folder: Path) -> None:
    with open(folder / "test/1.tar", "ab") as stream:
        stream.write(bytes(512))


def exchange_the_class_names(folder: Path) -> None:
    names = (folder / "classnames.txt").read_text().split()
    (folder / "classnames.txt").write_text("\n".join([names[1], names[0], *names[2:]]) + "\n")


def remove_a_template(folder: Path) -> None:
    (folder / "zeroshot_classification_templates.txt").unlink()


@pytest.mark.parametrize("change", [append_to_the_last_shard, exchange_the_class_names, remove_a_template])
def test_data_that_changes_while_it_is_read_gives_no_score(
    work: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """After the first batch: the score would carry the fingerprint of other data."""
    batches = TaskRun.encoded_batches

    def changing(run: TaskRun, *arguments: object) -> Iterator[object]:
        for number, batch in enumerate(batches(run, *arguments)):  # type: ignore[arg-type]
            yield batch
            if number == 0 and run.folder.path.name == "wds_colours_test":
                change(run.folder.path)

    monkeypatch.setattr(TaskRun, "encoded_batches", changing)
    with pytest.raises(UserError, match=r"1 of 3 tasks failed(?s:.*)colours: .* changed while it was read"):
        run(work)
    assert {path.name for path in (work / "out").glob("*.json")} == {
        "colours.error.json",
        "captions.json",
        "some-groups.json",
    }


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_fails_the_task_and_others_finish(
    work: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = TaskRun.encoded_batches

    def filling(run: TaskRun, *arguments: object) -> Iterator[object]:
        if run.folder.path.name == "wds_captions_test":
            (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free))
        yield from batches(run, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskRun, "encoded_batches", filling)
    with pytest.raises(UserError, match=r"1 of 3 tasks failed(?s:.*)captions: no space left to write .*captions"):
        run(work, disk / "out")
    assert {path.name for path in (disk / "out").glob("*.json")} == {"colours.json", "some-groups.json"}


def test_where_results_cannot_be_written_no_model_is_loaded(work: Path, disk: Path) -> None:
    (work / "model" / CONFIG_FILE).write_text("{}")
    (work / "file").write_text("")
    with pytest.raises(UserError, match=r"results cannot be written to .*/file \(File exists\)"):
        run(work, work / "file")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=r"results cannot be written to .*/disk \(Read-only file system\)"):
        run(work, disk)


def test_batches_of_one_image(evaluated: Path, tmp_path: Path) -> None:
    singly, together = run(evaluated, tmp_path / "one", batch_size=1), run(evaluated, tmp_path / "many")
    for one, many in zip(singly, together, strict=True):
        assert one["metrics"] == pytest.approx(many["metrics"], abs=1e-6)


def encoded(image: Image.Image, form: str, **options: object) -> tuple[str, bytes]:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return {"JPEG": "jpg"}.get(form, form.lower()), stream.getvalue()


def picture() -> Image.Image:
    return Image.open(io.BytesIO(image_bytes(np.random.default_rng(0)))).convert("RGB")


def sixteen_bit() -> tuple[str, bytes]:
    return encoded(Image.fromarray(np.arange(40 * 36, dtype=np.uint16).reshape(36, 40) * 40), "PNG")


def rotated() -> tuple[str, bytes]:
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    return encoded(picture(), "JPEG", exif=exif.tobytes())


def transparent_palette() -> tuple[str, bytes]:
    return encoded(picture().quantize(16), "PNG", transparency=3)


@pytest.mark.parametrize(
    "make",
    [
        sixteen_bit,
        rotated,
        transparent_palette,
        lambda: encoded(picture().convert("CMYK"), "JPEG"),
        lambda: encoded(picture().convert("RGBA"), "WEBP", lossless=True),
        lambda: encoded(picture().resize((1, 1)), "PNG"),
        lambda: encoded(picture().resize((1, 1)), "JPEG"),
        lambda: encoded(picture().resize((3000, 2)), "PNG"),
    ],
)
def test_pictures_of_every_sort_are_what_webdataset_makes_of_them(
    tmp_path: Path, make: Callable[[], tuple[str, bytes]]
) -> None:
    kind, content = make()
    write_folder(tmp_path, "t", [{kind: content, "cls": 0}], shards=1)
    (batch,) = read_batches(open_folder(tmp_path, "t").shards, to_tensor, lambda sample: 0, 4, 0)
    official = ImageHandler("pil", extensions=[kind])(kind, content)
    assert torch.equal(batch.images[0], to_tensor(official))


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    width = height = 20_000
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    write_folder(tmp_path, "t", [{"png": stream.getvalue(), "cls": 0}], shards=1)
    with pytest.raises(UserError, match=r"0\.tar: sample s0000000: Image size \(400000000 pixels\) exceeds limit"):
        list(read_batches(open_folder(tmp_path, "t").shards, to_tensor, lambda sample: 0, 4, 0))
