"""Training on ranks: DeepSpeed equals a plain loop, an interrupted run an undisturbed one; bad states are refused."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from pipeline.config.loader import load_recipe
from pipeline.config.schema import RunConfig
from pipeline.data.loader import Corpus, StepPositions, build_loader
from pipeline.distributed import World, rank, world_size
from pipeline.engine.export import export
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.schedule import build_schedule
from pipeline.engine.tags import complete_tags
from pipeline.engine.train_module import TrainModule
from pipeline.errors import UserError
from pipeline.models.two_tower import build_tokenizer, build_two_tower, load_exported
from pipeline.objectives import Features, build_objective, objective_class
from pipeline.tracking.base import NullTracker
from pipeline.tracking.jsonl import JsonlTracker, read_points
from pipeline.trainer import Trainer, summarise
from tests.distributed.launch import run_ranks

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def config_of(corpus: Path, *overrides: str) -> RunConfig:
    settings = (
        f"loader.manifest={corpus}",
        f"model.config={TINY}",
        "train.epochs=null",
        "train.steps=8",
        "train.global_batch_size=12",
        "optimizer.warmup=2",
        "loader.workers=0",
        "objectives.neuclip.npn={prototypes: 16, restart_every: 3, inner_steps: 2}",
        "diagnostics={every_steps: 4, reference_samples: 40}",
        "checkpoint.every=36 samples",
        "temperature.lr=0.01",
        "tracking.mlflow=false",
    )
    return load_recipe("demo", [*settings, *overrides])


def here() -> World:
    return World(rank(), rank(), world_size(), torch.device("cpu"))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def tensors_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Those in a state dict, at any depth: networks keep theirs in an `_extra_state`."""
    found = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().clone()
        elif isinstance(value, Mapping):
            found |= {f"{name}.{inner}": tensor for inner, tensor in tensors_of(value).items()}
    return found


def digest(tensors: dict[str, torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


class StopAfter(JsonlTracker):
    """Asks for a stop, the way a colleague does, once the step before `step` is logged: the answer takes one more."""

    def __init__(self, path: Path, start_step: int, step: int) -> None:
        super().__init__(path, start_step)
        self._stop_file, self._step = path.parent.parent / "STOP", step

    def log(self, metrics: Any, step: int, samples_seen: int) -> None:
        super().log(metrics, step, samples_seen)
        if step == self._step - 1:
            self._stop_file.touch()


def fit(config: RunConfig, run_dir: Path, stop_after: int = -1) -> dict[str, Any]:
    """One life of a training run."""
    trainer = Trainer(config, run_dir / "train", here())
    started_at = trainer.progress.step
    tracker = NullTracker()
    if rank() == 0:
        tracker = StopAfter(run_dir / "train/metrics.jsonl", started_at, stop_after)
    status = trainer.fit(tracker)
    return {
        "status": status,
        "started_at": started_at,
        "weights": weights(trainer.engine.module),
        "objective": digest(tensors_of(trainer.engine.objective.state_dict())),
        "order": trainer.progress.order_digest,
        "summary": summarise(trainer) if rank() == 0 else None,
    }


def train_undisturbed_and_interrupted(config: RunConfig, folder: Path) -> dict[str, Any]:
    whole = fit(config, folder / "whole")
    stopped = fit(config, folder / "stopped", stop_after=5)
    if rank() == 0:
        (folder / "stopped/STOP").unlink()
    torch.distributed.barrier()
    resumed = fit(config, folder / "stopped")
    return {"whole": whole, "stopped": stopped, "resumed": resumed}


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


def plain_loop(config: RunConfig, steps: int) -> dict[str, torch.Tensor]:
    """The weights after the same training without DeepSpeed: torch's AdamW, one process, the whole batch."""
    return plain_states(config, steps)["weights"]


def plain_states(config: RunConfig, steps: int) -> dict[str, Any]:
    """As `plain_loop`, with the objective's state, and the norm of the gradients at each step."""
    torch.manual_seed(config.seed)
    bias = objective_class(config.objective).default_logit_bias
    towers = build_two_tower(config.model, float(-torch.tensor(config.temperature.init).log()), bias)
    module = TrainModule(towers, config.temperature)
    optimizer = build_optimizer(module, config.optimizer, config.temperature)
    corpus = Corpus(config.loader, config.seed, 16, build_tokenizer(TINY))
    objective = build_objective(config.objective, config.objectives[config.objective])
    objective.prepare(torch.device("cpu"), 16, len(corpus), config.seed)
    schedule = build_schedule(config.optimizer, steps, config.train.global_batch_size, len(corpus))
    positions = StepPositions(config.train.global_batch_size, 0, 1, 0, steps)
    norms = []
    for step, batch in enumerate(build_loader(corpus, positions, config.loader, pin_memory=False)):
        encoded = module(batch.images, batch.tokens)
        features = Features(encoded.image_features, encoded.text_features)
        loss = objective(features, batch.sample_index, encoded.tau, encoded.logit_bias).loss
        for group in optimizer.param_groups:
            if group["name"] != "temperature":
                group["lr"] = schedule.rate(step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.clip_grad_norm)
        optimizer.step()
        module.towers.logit_scale.data.clamp_(*module.logit_scale_bounds)
        norms.append(float(norm))
    return {"weights": weights(module), "objective": tensors_of(objective.state_dict()), "norms": norms}


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


def hurt(tag: Path, damage: str) -> None:
    victim = max(tag.glob("*optim_states.pt"))
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size - 1)
    elif damage == "flip":
        content = bytearray(victim.read_bytes())
        content[1000] ^= 1
        victim.write_bytes(content)
    elif damage == "delete":
        victim.unlink()
    elif damage == "no COMPLETE":
        (tag / "COMPLETE").unlink()
    elif damage == "empty COMPLETE":
        (tag / "COMPLETE").write_text("")


DAMAGES = {
    "truncate": "bytes, not",
    "flip": "does not match its sha256",
    "delete": "is missing",
    "empty COMPLETE": "COMPLETE is unreadable",
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
