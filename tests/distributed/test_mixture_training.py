"""Training on several corpora: what was trained on is the mixture's order, through a stop and other ranks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from data_prep.manifest import read_manifest
from pipeline.cli import main
from pipeline.config.schema import RunConfig
from pipeline.data.loader import build_order
from pipeline.errors import UserError
from pipeline.same_run import refuse_other_run
from pipeline.tracking.jsonl import read_points
from tests.conftest import write_corpus
from tests.distributed.launch import run_ranks
from tests.distributed.training_support import config_of, fit


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Corpora of 30 and 20 samples."""
    root = tmp_path_factory.mktemp("corpora")
    return [write_corpus(root / "large", [18, 12]), write_corpus(root / "small", [20])]


def mixed(corpora: list[Path], *overrides: str, weights: tuple[float, float] = (0.75, 0.25)) -> RunConfig:
    shares = ", ".join(f"{{manifest: {c}, weight: {w}}}" for c, w in zip(corpora, weights, strict=True))
    return config_of(
        Path("unused"), "loader.manifest=null", f"loader.corpora=[{shares}]", "train.log_every_steps=1", *overrides
    )


def expected_digest(config: RunConfig) -> str:
    """The chain over the sample indices of 8 batches of 12, from the order alone."""
    manifests = [read_manifest(source.manifest) for source in config.loader.sources]
    firsts = np.cumsum([0, *np.concatenate([manifest.samples for manifest in manifests])])
    shards, rows = build_order(config.loader, config.seed, manifests).locate(np.arange(96))
    digest = ""
    for step in (firsts[shards] + rows).reshape(8, 12):
        digest = hashlib.sha256(bytes.fromhex(digest) + step.astype("<i8").tobytes()).hexdigest()
    return digest


def test_a_mixture_survives_a_stop_and_another_number_of_ranks(corpora: list[Path], tmp_path: Path) -> None:
    config = mixed(corpora, "objective=openclip", "objectives.openclip={}")
    stopped = run_ranks(2, fit, config, tmp_path, 5)[0]
    (tmp_path / "STOP").unlink()
    resumed = run_ranks(1, fit, config, tmp_path)[0]
    assert (stopped["status"], resumed["started_at"], resumed["status"]) == ("preempted", 5, "finished")
    assert resumed["order"] == expected_digest(config) != stopped["order"]
    drawn = [
        (point.metrics["data/samples/large"], point.metrics["data/samples/small"])
        for point in read_points(tmp_path / "train/metrics.jsonl")
    ]
    assert drawn == [(9 * step, 3 * step) for step in range(1, 9)]


def refusal(before: RunConfig, after: RunConfig, *fingerprints: str) -> str:
    state: dict[str, Any] = {"config": before.model_dump(mode="json"), "manifest_fingerprint": fingerprints[0]}
    with pytest.raises(UserError) as caught:
        refuse_other_run(state, after, fingerprints[-1], Path("run"))
    return str(caught.value)


def test_what_the_order_depends_on_may_not_change_in_a_run(corpora: list[Path]) -> None:
    config = mixed(corpora)
    assert "loader.weights: [0.75, 0.25] -> [0.5, 0.5]" in refusal(config, mixed(corpora, weights=(0.5, 0.5)), "f")
    assert "loader.replacement: False -> True" in refusal(config, mixed(corpora, "loader.replacement=true"), "f")
    assert "corpus manifest: f -> g" in refusal(config, config, "f", "g")


def test_corpora_may_move_and_old_checkpoints_know_fewer_settings(corpora: list[Path]) -> None:
    config = mixed(corpora)
    moved = mixed([Path("elsewhere/large"), Path("s3://bucket/small")], "loader.cache=/tmp/cache", "loader.workers=3")
    refuse_other_run({"config": config.model_dump(mode="json"), "manifest_fingerprint": "f"}, moved, "f", Path("run"))
    old = config_of(corpora[0]).model_dump(mode="json")
    old["loader"] = {key: old["loader"][key] for key in ("manifest", "lanes", "shuffle_window", "crop_scale")}
    refuse_other_run({"config": old, "manifest_fingerprint": "f"}, config_of(corpora[0]), "f", Path("run"))


def test_a_dry_run_counts_the_samples_of_all_corpora(corpora: list[Path]) -> None:
    shares = ", ".join(f"{{manifest: {corpus}}}" for corpus in corpora)
    towers = "model.config={embed_dim: 24, vision_cfg: {}, text_cfg: {}}"
    command = ["train", "demo", "--dry-run", f"loader.corpora=[{shares}]", "train.global_batch_size=10", towers]
    said = CliRunner().invoke(main, [*command, "train.steps=null", "train.epochs=2"], catch_exceptions=False).output
    assert "50 samples per epoch (in 2 manifests)" in said
    assert "10 steps of 10: 100 samples, 2.00 epochs" in said
