"""Samples come whole, in order and once each, whatever the number of loader processes; what cannot be read
ends with a message that names the shard and the sample.
"""

import io
import tarfile
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from evaluation_support import image_bytes, open_folder, write_folder
from PIL import Image
from torchvision.transforms.functional import to_tensor

from pipeline.errors import UserError
from pipeline.evaluation.kinds.classification import parse_label
from pipeline.evaluation.metadata import ParseMetadata, check_widths, metadata_rows
from pipeline.evaluation.reading import read_batches
from pipeline.evaluation.samples import images

SIZE = 23
read_label = partial(parse_label, classes=SIZE)


def samples(kind="png"):
    rng = np.random.default_rng(0)
    return [{kind: image_bytes(rng, kind), "cls": index} for index in range(SIZE)]


def read(data, workers=0, parse=read_label, batch_size=4):
    shards = open_folder(data, "t").shards
    return list(read_batches(shards, to_tensor, parse, batch_size, workers))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shards", [1, 5])
def test_every_sample_once_in_order(tmp_path, workers, shards):
    content = samples()
    write_folder(tmp_path, "t", content, shards=shards)
    batches = read(tmp_path, workers)
    assert [len(batch.names) for batch in batches] == [4, 4, 4, 4, 4, 3]
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
        ({"png": b"no image", "cls": 3}, "cannot identify its image"),
        ({"png": image_bytes(np.random.default_rng(0))[:900], "cls": 3}, "truncated"),
        ({"png": b"", "cls": 3}, "cannot identify its image"),
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


PARSE = ParseMetadata(("place", "y"), grouped=("place",), groups=3)


def test_metadata_are_the_named_columns_whatever_their_type():
    assert PARSE({"npy": _npy(np.array([2, 7]))}).values == [2, 7]
    assert PARSE({"npy": _npy(np.array([2, 7, 0.5, 1]))}) == (4, [2, 7])  # what has no name is not read
    assert PARSE({"npy": _npy(np.array([1.0, -3.0], np.float32))}).values == [1, -3]
    unlimited = ParseMetadata(("place",), grouped=("place",))
    assert unlimited({"npy": _npy(np.array([99]))}).values == [99]
    with pytest.raises(ValueError, match=r"place 1099511627776 is not in \[0, 10000\)"):
        unlimited({"npy": _npy(np.array([1 << 40]))})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (_npy(np.array([3, 0])), r"place 3 is not in \[0, 3\)"),
        (_npy(np.array([-1, 0])), "place -1 is not in"),
        (_npy(np.array([0.5, 0])), "should be whole numbers"),
        (_npy(np.array([np.nan, 0])), "should be whole numbers"),
        (_npy(np.array([1])), "metadata has 1 columns, the task's are place, y"),
        (_npy(np.array(1)), "should be a vector"),
        (_npy(np.array([[1, 2]])), "should be a vector"),
        (_npy(np.zeros((0,))), "metadata has 0 columns"),
        (_npy(np.array(["a"])), "should be a vector"),
        (_npy(np.array([{}], dtype=object)), "allow_pickle"),
        (b"not npy at all", "magic string"),
    ],
)
def test_other_metadata_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        PARSE({"npy": metadata})


def test_metadata_of_another_width_is_counted_to():
    rows = [PARSE({"npy": _npy(np.arange(width))}) for width in (3, 3, 4, 3)]
    with pytest.raises(UserError, match=r"here: the metadata of sample 2 \(from 0\) has 4 columns, not 3"):
        check_widths(metadata_rows(rows), "here")
    check_widths(metadata_rows(rows[:2]), "here")
    assert metadata_rows(rows[:2])["metadata"].tolist() == [[0, 1], [0, 1]]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def captioned(count, first=0):
    rng = np.random.default_rng(first)
    return [
        {
            "image": {"bytes": image_bytes(rng), "path": None},
            "caption": [f"{first + row} {k}" for k in range(1 + row % 3)],
        }
        for row in range(count)
    ]


PARQUET = {"kind": "retrieval", "classes": None, "main_metric": "mean_recall@1", "format": "parquet", "folder": "o/t"}


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_rows_come_once_in_order(tmp_path, workers):
    rows = captioned(20), captioned(21, first=20)
    for number, part in enumerate(rows):
        write_parquet(tmp_path / f"o/t/TEST/test/000{number}.parquet", part)
    write_parquet(tmp_path / "o/t/.cache/x.parquet", [{"odd": 1}])
    shards = open_folder(tmp_path, "t", **PARQUET).shards
    batches = list(read_batches(shards, to_tensor, lambda row: row["caption"], 4, workers))
    assert batches[0].targets == [row["caption"] for row in rows[0][:4]]
    assert [captions for batch in batches for captions in batch.targets] == [
        row["caption"] for part in rows for row in part
    ]
    assert torch.equal(batches[-1].images[0], to_tensor(Image.open(io.BytesIO(rows[1][-1]["image"]["bytes"]))))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"image": {"bytes": b"no image", "path": None}}, r"0000\.parquet: sample in row 18: cannot identify"),
        ({"image": {"bytes": None, "path": "a.jpg"}}, "row 18: "),
        ({"image": None}, "row 18: no image"),
    ],
)
def test_an_unusable_row_is_named(tmp_path, spoil, message):
    rows = captioned(20)
    rows[18].update(spoil)
    write_parquet(tmp_path / "o/t/0000.parquet", rows)
    with pytest.raises(UserError, match=message):
        list(read_batches(open_folder(tmp_path, "t", **PARQUET).shards, to_tensor, lambda row: 0, 4, 0))


def test_torn_parquet_and_an_empty_folder_are_named(tmp_path):
    path = tmp_path / "o/t/0000.parquet"
    write_parquet(path, captioned(20))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"0000\.parquet cannot be read \(torn, or no parquet file\?\)"):
        list(read_batches(open_folder(tmp_path, "t", **PARQUET).shards, to_tensor, lambda row: 0, 4, 0))
    path.unlink()
    with pytest.raises(UserError, match=r"no \*\.parquet in .*o/t"):
        open_folder(tmp_path, "t", **PARQUET)


def test_candidates_are_several_images_and_keep_their_mode():
    stream = io.BytesIO()
    Image.new("L", (3, 2)).save(stream, "png")
    found = images({"candidate_images": [{"bytes": stream.getvalue()}] * 3, "__key__": "0"})
    assert [image.mode for image in found] == ["L"] * 3  # the model's preprocessing converts, after it has resized
    assert images({"png": stream.getvalue()})[0].mode == "RGB"
