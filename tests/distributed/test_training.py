"""Training on ranks: DeepSpeed equals a plain loop, an interrupted run an undisturbed one; bad states are refused."""

from __future__ import annotations

import io
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.engine.export import export
from pipeline.engine.tags import complete_tags
from pipeline.engine.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.models.two_tower import build_two_tower, load_exported
from pipeline.tracking.base import NullTracker
from pipeline.tracking.jsonl import read_points
from pipeline.trainer import Trainer
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import (
    config_of,
    digest,
    fit,
    here,
    hurt,
    plain_loop,
    train_undisturbed_and_interrupted,
)


def train_interrupted_and_again(config: RunConfig, folder: Path) -> dict[str, Any]:
    return {**train_undisturbed_and_interrupted(config, folder), "again": fit(config, folder / "stopped")}


@pytest.fixture(scope="module")
def lives(noise_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One undisturbed run, and one that was stopped after 5 of 8 steps and continued, on 2 ranks."""
    folder = tmp_path_factory.mktemp("lives")
    config = config_of(noise_corpus, "train.log_every_steps=1")
    return folder, run_ranks(2, train_interrupted_and_again, config, folder)[0]


def test_a_stopped_run_goes_on_bit_for_bit(lives: tuple[Path, dict[str, Any]]) -> None:
    folder, runs = lives
    assert runs["stopped"]["status"] == "preempted"
    assert runs["resumed"]["started_at"] == 5
    assert runs["resumed"]["status"] == "finished"
    assert runs["stopped"]["order"] != runs["whole"]["order"]
    for key in ("objective", "order"):
        assert runs["resumed"][key] == runs["whole"][key]
    assert digest(runs["resumed"]["weights"]) == digest(runs["whole"]["weights"])
    steps = [point.step for point in read_points(folder / "stopped/train/metrics.jsonl")]
    assert steps == list(range(1, 9))


def test_a_finished_run_does_nothing_more(lives: tuple[Path, dict[str, Any]]) -> None:
    again = lives[1]["again"]
    assert (again["started_at"], again["status"]) == (8, "finished")
    assert digest(again["weights"]) == digest(lives[1]["whole"]["weights"])


def test_the_summary_tells_what_happened(lives: tuple[Path, dict[str, Any]]) -> None:
    summary = lives[1]["resumed"]["summary"]
    assert summary["steps"] == 8
    assert summary["samples_seen"] == 96
    for name in (
        "final_loss",
        "tau",
        "log_normalizer_mse",
        "samples_per_second",
        "npn_share",
        "data_wait_share",
        "train_seconds",
    ):
        assert isinstance(summary[name], float), name
    assert 0 < summary["npn_share"] < 1
    assert summary["cpu_hours"] == pytest.approx(summary["train_seconds"] / 3600 * summary["world_size"])
    assert summary["gpu_hours"] == 0


def test_only_the_newest_checkpoints_are_kept_and_all_are_whole(lives: tuple[Path, dict[str, Any]]) -> None:
    checkpoints = lives[0] / "whole/train/checkpoints"
    assert complete_tags(checkpoints) == ["step-00000006", "step-00000008"]
    assert (checkpoints / "latest").read_text() == "step-00000008"
    assert not list(checkpoints.glob(".*tmp*"))


def test_export_gives_open_clip_the_trainers_features(lives: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, runs = lives
    provenance = export(folder / "whole/train/checkpoints", tmp_path / "model")
    assert provenance["samples_seen"] == 96
    exported = load_exported(tmp_path / "model", torch.device("cpu"))
    module = TrainModule(build_two_tower(config_of(folder).model, 0.0), config_of(folder).temperature)
    module.load_state_dict(runs["whole"]["weights"])
    images = torch.randint(0, 255, (5, 3, 16, 16), dtype=torch.uint8)
    tokens = exported.tokenizer([f"caption {i}" for i in range(5)])
    with torch.no_grad():
        encoded = module.eval()(images, tokens)
        pixels = (images - module.mean) / module.std
        assert torch.equal(exported.model.encode_image(pixels, normalize=True), encoded.image_features)
        assert torch.equal(exported.model.encode_text(tokens, normalize=True), encoded.text_features)
    open_clip.add_model_config(tmp_path / "model")
    weights_file = str(tmp_path / "model/open_clip_model.safetensors")
    by_path, _, _ = open_clip.create_model_and_transforms("scenes-tiny", pretrained=weights_file)
    with torch.no_grad():
        assert torch.equal(by_path.eval().encode_text(tokens, normalize=True), encoded.text_features)


@pytest.mark.parametrize("objective", ["neuclip", "openclip"])
def test_zero2_on_two_ranks_equals_a_plain_loop(
    noise_corpus: Path, tmp_path: Path, objective: str, lives: tuple[Path, dict[str, Any]]
) -> None:
    config = config_of(noise_corpus, f"objective={objective}", "objectives.openclip={}")
    if objective == "neuclip":
        got = lives[1]["whole"]["weights"]
    else:  # here tau runs into its bound and comes back
        bounded = "temperature={init: 0.05, minimum: 0.0499, maximum: 0.0501, lr: 0.01, drop_below: 0}"
        config = config_of(noise_corpus, f"objective={objective}", "objectives.openclip={}", bounded)
        got = run_ranks(2, fit, config, tmp_path)[0]["weights"]
        weights_file = export(tmp_path / "train/checkpoints", tmp_path / "model")
        assert 0.0499 * (1 - 1e-6) <= weights_file["tau"] <= 0.0501 * (1 + 1e-6)
    for name, expected in plain_loop(config, 8).items():
        torch.testing.assert_close(got[name], expected, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def resume(config: RunConfig, folder: Path) -> tuple[int, str]:
    """The step that a new life starts from, and what it warned of."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("pipeline").addHandler(handler)
    step = Trainer(config, folder / "train", here()).progress.step
    logging.getLogger("pipeline").removeHandler(handler)
    return step, said.getvalue()


DAMAGES = {
    "truncate": "bytes, not",
    "flip": "does not match its sha256",
    "delete": "is missing",
    "empty COMPLETE": "COMPLETE: is no JSON",
    "no COMPLETE": "",  # a save that was killed: nothing to warn of
}


def resume_after_each_damage(config: RunConfig, folder: Path) -> dict[str, tuple[int, str]]:
    fit(config, folder / "whole")
    found = {"none": resume(config, folder / "whole")}
    for damage in DAMAGES:
        shutil.copytree(folder / "whole", folder / damage)
        hurt(folder / damage / "train/checkpoints/step-00000006", damage)
        found[damage] = resume(config, folder / damage)
    return found


def test_a_damaged_checkpoint_falls_back_loudly_to_the_one_before(noise_corpus: Path, tmp_path: Path) -> None:
    (found,) = run_ranks(1, resume_after_each_damage, config_of(noise_corpus, "train.steps=6"), tmp_path)
    assert found.pop("none") == (6, "")
    for damage, (step, said) in found.items():
        assert step == 3, damage
        assert DAMAGES[damage] in said
        assert ("CHECKPOINT DAMAGED" in said) == (damage != "no COMPLETE")


def refusal(config: RunConfig, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Trainer(config, folder / "train", here())
    return str(caught.value)


def refusals(corpus: Path, folder: Path, whole: Path) -> dict[str, str]:
    same = "train.log_every_steps=1"
    return {
        "recipe": refusal(config_of(corpus, same, "optimizer.lr=0.5"), whole),
        "batch": refusal(config_of(corpus, "train.processes=1", "train.global_batch_size=13"), folder),
        "fp16": refusal(config_of(corpus, "train.precision=fp16", "train.deepspeed=zero0"), folder),
        "compile": refusal(config_of(corpus, "train.compile=true", "train.deepspeed=zero3"), folder),
        "duration": refusal(config_of(corpus, "train.steps=null", "train.samples=5"), folder),
    }


def test_what_cannot_go_on_is_refused_with_the_reason(
    noise_corpus: Path, lives: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole = lives[0] / "whole"
    (said, _) = run_ranks(2, refusals, noise_corpus, tmp_path, whole)
    assert "optimizer.lr: 0.001 -> 0.5" in said["recipe"]
    assert "train.global_batch_size=13 cannot be split over 2 ranks" in said["batch"]
    assert "Use zero1, or bf16" in said["fp16"]
    assert "Use zero2, or leave it out" in said["compile"]
    assert "less than one global batch of 12" in said["duration"]


def diverge(config: RunConfig, folder: Path) -> str:
    trainer = Trainer(config, folder / "train", here())
    with torch.no_grad():
        trainer.engine.module.towers.text_projection.fill_(float("nan"))
    with pytest.raises(UserError) as caught:
        trainer.fit(NullTracker())
    return str(caught.value)


def test_a_run_that_is_not_finite_stops_before_it_is_saved(noise_corpus: Path, tmp_path: Path) -> None:
    (said,) = run_ranks(1, diverge, config_of(noise_corpus, "checkpoint.every=1"), tmp_path)
    assert re.match(r"step 1: train/(loss|grad_norm) is nan", said)
    assert not (tmp_path / "train/checkpoints").exists()
