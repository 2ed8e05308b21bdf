"""Files of tensors are what was written or nothing; classifiers on disk save time and never change a score."""

import json
import shutil

import pytest
import torch
from evaluation_support import write_model, write_suite
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.errors import UserError
from pipeline.evaluation import classifier_cache
from pipeline.evaluation.classifier_cache import ClassifierCache
from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.suite import evaluate
from pipeline.evaluation.tensor_file import read_tensors, write_tensors
from pipeline.models.two_tower import load_exported

CPU = torch.device("cpu")
TENSORS = {"label": torch.arange(5, dtype=torch.int32), "share": torch.rand(3, 2), "empty": torch.empty(0, 4)}
ABOUT = {"stamp": {"a": "b"}, "seconds": 0.5}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("tensors") / "file.safetensors"
    write_tensors(path, TENSORS, ABOUT)
    return path, path.read_bytes()


def same(file):
    return (
        file.about == ABOUT
        and file.tensors.keys() == TENSORS.keys()
        and all(torch.equal(file.tensors[name], tensor) for name, tensor in TENSORS.items())
        and all(file.tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    )


def test_what_is_read_is_what_was_written(written):
    assert same(read_tensors(written[0]))


@given(st.data())
def test_a_damaged_file_is_no_file(written, data):
    path, content = written
    changed = bytearray(content)
    if data.draw(st.booleans()):
        changed[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        changed = changed[: data.draw(st.integers(0, len(content) - 1))]
    other = path.with_name("damaged")
    other.write_bytes(changed)
    found = read_tensors(other)
    assert found is None or same(found)


def test_a_file_of_somebody_else_is_no_file(tmp_path):
    assert read_tensors(tmp_path / "none") is None
    save_file(TENSORS, tmp_path / "theirs")
    assert read_tensors(tmp_path / "theirs") is None
    save_file(TENSORS, tmp_path / "theirs", {"neuclip": json.dumps(ABOUT)})
    assert read_tensors(tmp_path / "theirs") is None
    (tmp_path / "theirs").write_text("{}")
    assert read_tensors(tmp_path / "theirs") is None


def made(value=1.0):
    return torch.full((2, 3), value)


def test_a_classifier_is_made_once_and_again_for_anything_else(tmp_path):
    def never():
        raise AssertionError("made again")

    cache = ClassifierCache(tmp_path, {"checkpoint_sha256": "a"})
    assert torch.equal(cache.get(["cat", "dog"], ["{c}"], made), made())
    assert torch.equal(cache.get(("cat", "dog"), ("{c}",), never), made())
    others = [
        (cache, ["dog", "cat"], ["{c}"]),
        (cache, ["cat", "dog"], ["a {c}"]),
        (cache, ["cat"], ["dog", "{c}"]),
        (ClassifierCache(tmp_path, {"checkpoint_sha256": "b"}), ["cat", "dog"], ["{c}"]),
    ]
    for number, (other, classnames, templates) in enumerate(others, 2):
        assert torch.equal(other.get(classnames, templates, lambda n=number: made(n)), made(number))
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "poison", "foreign", "older"])
def test_a_file_that_is_not_this_classifier_is_made_again(tmp_path, damage):
    cache = ClassifierCache(tmp_path, {"checkpoint_sha256": "a"})
    cache.get(["cat"], ["{c}"], made)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "poison":
        with safe_open(path, "pt") as file:
            save_file({"classifier": made(9)}, path, file.metadata())
    elif damage == "foreign":
        write_tensors(path, {"classifier": made(9)}, {"checkpoint_sha256": "b", "classnames": ["cat"]})
    elif damage == "older":
        write_tensors(path, {"classifier": made(9)}, {**read_tensors(path).about, "code_version": "0.1.0+older"})
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 64])
        path.write_bytes({"cut": content[:-2], "flip": flipped, "empty": b""}[damage])
    assert torch.equal(cache.get(["cat"], ["{c}"], made), made())
    assert path.read_bytes() == content


def test_a_second_process_encodes_no_prompt_and_gets_the_same_bits(tmp_path):
    exported = load_exported(write_model(tmp_path / "model"), CPU)
    cache = ClassifierCache(tmp_path / "cache", {"checkpoint_sha256": "a"})
    names, templates = [f"thing {n}" for n in range(9)], ["a {c}", "{c}"]
    first = Encoder(exported, CPU, cache=cache).classifier(names, templates)
    second = Encoder(exported, CPU, cache=cache)
    second.encode_texts = None
    again = second.classifier(names, templates)
    assert torch.equal(first, again)
    assert first.stride() == again.stride()  # so that products with it run the same way
    assert torch.equal(Encoder(exported, CPU).classifier(names, templates), again)


def test_scores_do_not_depend_on_the_cache(tmp_path, monkeypatch):
    write_model(tmp_path / "model")
    write_model(tmp_path / "other", seed=1)
    write_suite(tmp_path / "data")

    def metrics(model, out, **options):
        (tmp_path / out / "colours.json").unlink(missing_ok=True)
        (result,) = evaluate(tmp_path / model, tmp_path / "data", tmp_path / out, ["colours"], workers=0, **options)
        return result["metrics"]

    fresh, others = metrics("model", "out"), metrics("other", "fresh")
    assert fresh != others
    monkeypatch.setattr(classifier_cache, "write_tensors", None)  # nothing is made again
    assert metrics("model", "out") == fresh
    made = []
    monkeypatch.setattr(Encoder, "encode_texts", lambda *_: made.append(1))
    with pytest.raises(UserError, match="AttributeError"):
        metrics("model", "out", force=True)
    assert made == [1]
    monkeypatch.undo()
    shutil.copytree(tmp_path / "out/classifiers", tmp_path / "mixed/classifiers")
    assert metrics("other", "mixed") == others
    assert len(list((tmp_path / "mixed/classifiers").iterdir())) == 2
