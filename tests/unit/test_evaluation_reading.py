"""Samples come whole, in order and once each, whatever the number of loader processes; what cannot be read
ends with a message that names the shard and the sample.
"""

import io
import tarfile
from functools import partial

import numpy as np
import pytest
import torch
import webdataset
from evaluation_support import image_bytes, write_folder
from PIL import Image
from torchvision.transforms.functional import to_tensor

from pipeline.errors import UserError
from pipeline.evaluation.classification import parse_label
from pipeline.evaluation.reading import read_batches
from pipeline.evaluation.task_folder import open_task_folder
from pipeline.evaluation.worst_group import parse_group

SIZE = 23
read_label = partial(parse_label, classes=SIZE)


def samples(kind="png"):
    rng = np.random.default_rng(0)
    return [{kind: image_bytes(rng, kind), "cls": index} for index in range(SIZE)]


def read(data, workers=0, parse=read_label, batch_size=4):
    shards = open_task_folder(data, "t").shards
    return list(read_batches(shards, to_tensor, parse, batch_size, workers))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shards", [1, 5])
def test_every_sample_once_in_order(tmp_path, workers, shards):
    content = samples()
    write_folder(tmp_path, "t", content, shards=shards)
    batches = read(tmp_path, workers)
    assert [len(batch.samples) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert [label for batch in batches for label in batch.targets] == list(range(SIZE))
    images = torch.cat([batch.images for batch in batches])
    expected = [to_tensor(Image.open(io.BytesIO(sample["png"]))) for sample in content]
    assert torch.equal(images, torch.stack(expected))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_every_image_becomes_rgb(tmp_path, mode):
    with Image.open(io.BytesIO(image_bytes(np.random.default_rng(1)))) as picture:
        odd = picture.convert(mode)
    kind = "jpg" if mode == "CMYK" else "png"
    stream = io.BytesIO()
    odd.save(stream, format="jpeg" if kind == "jpg" else kind)
    write_folder(tmp_path, "t", [{kind: stream.getvalue(), "cls": 0}], shards=1)
    (batch,) = read(tmp_path)
    assert torch.equal(batch.images[0], to_tensor(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"png": b"no image", "cls": 3}, "cannot identify image file"),
        ({"png": image_bytes(np.random.default_rng(0))[:900], "cls": 3}, "truncated"),
        ({"png": b"", "cls": 3}, "cannot identify image file"),
        ({"gif": b"GIF89a", "cls": 3}, "no image"),
        ({"png": image_bytes(np.random.default_rng(0))}, "no cls"),
        ({"png": image_bytes(np.random.default_rng(0)), "cls": SIZE}, r"label 23 is not in \[0, 23\)"),
        ({"png": image_bytes(np.random.default_rng(0)), "cls": -1}, "label -1 is not in"),
        ({"png": image_bytes(np.random.default_rng(0)), "cls": b"cat"}, "invalid literal"),
    ],
)
def test_an_unusable_sample_is_named(tmp_path, broken, message, workers):
    content = samples()
    content[13] = broken
    write_folder(tmp_path, "t", content, shards=2)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, workers)
    assert "test/1.tar: sample s0000013" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_cut_inside_a_member_is_named(tmp_path, workers):
    folder = write_folder(tmp_path, "t", samples(), shards=2)
    shard = folder / "test" / "1.tar"
    with tarfile.open(shard) as tar:
        cut = next(member for member in tar if member.name == "s0000017.png").offset_data + 100
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"test/1\.tar cannot be read") as caught:
        read(tmp_path, workers)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html>not a tar</html>" * 100])
def test_what_is_no_tar_is_named(tmp_path, content):
    folder = write_folder(tmp_path, "t", samples(), shards=2)
    (folder / "test" / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"test/0\.tar cannot be read"):
        read(tmp_path)


def test_a_member_that_comes_twice_is_refused(tmp_path):
    folder = write_folder(tmp_path, "t", samples(), shards=1)
    with webdataset.TarWriter(str(folder / "test" / "0.tar")) as sink:
        for label in (1, 2):
            sink.tarstream.addfile(_member("s0.cls", 1), io.BytesIO(str(label).encode()))
    with pytest.raises(UserError, match=r"s0\.cls: duplicate"):
        read(tmp_path)


def _member(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _npy(value):
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


def test_the_group_is_the_first_entry_of_the_metadata():
    assert parse_group({"npy": _npy(np.array([2, 0, 9]))}, groups=3) == 2
    assert parse_group({"npy": _npy(np.array([1.0, 0.5]))}, groups=3) == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (_npy(np.array([3, 0])), r"group 3 is not in \[0, 3\)"),
        (_npy(np.array([-1])), "group -1 is not in"),
        (_npy(np.array([0.5])), "group 0.5 is not in"),
        (_npy(np.array([np.nan])), "NaN"),
        (_npy(np.array(1)), "should be a vector"),
        (_npy(np.zeros((0,))), "should be a vector"),
        (_npy(np.array(["a"])), "should be a vector"),
        (_npy(np.array([{}], dtype=object)), "allow_pickle"),
        (b"not npy at all", "magic string"),
    ],
)
def test_other_metadata_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        parse_group({"npy": metadata}, groups=3)
