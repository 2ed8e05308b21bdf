"""Where towers start: open_clip's weights in any file, locked parts, left-out patches, checkpointed blocks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.config.loader import load_recipe
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.train_module import TrainModule, build_train_module
from pipeline.errors import UserError
from tests.distributed.training_support import RESNET, TINY


def build(*overrides: str, seed: int = 0, config: dict[str, Any] = TINY) -> TrainModule:
    torch.manual_seed(seed)
    return build_train_module(load_recipe("demo", [f"model.config={config}", "temperature.init=null", *overrides]))


def saved(path: Path, form: str, towers: nn.Module) -> Path:
    """Weights as they are found in the wild: 0-dim scalars, `module.` before the names, inside a checkpoint."""
    weights = {name: tensor.clone() for name, tensor in towers.state_dict().items()}
    for scalar in {"logit_scale", "logit_bias"} & weights.keys():
        weights[scalar] = weights[scalar].reshape(())
    if form == "folder":
        save_file(weights, path / "open_clip_model.safetensors")
        return path
    if form == "safetensors":
        save_file(weights, path / "some.safetensors")
        return path / "some.safetensors"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": t for name, t in weights.items()}}, path / "epoch_3.pt")
    return path / "epoch_3.pt"


def weights_of(module: TrainModule) -> dict[str, Tensor]:
    return dict(module.towers.state_dict())


@pytest.mark.parametrize("form", ["folder", "safetensors", "checkpoint"])
def test_every_form_of_weights_is_taken_with_its_tau(tmp_path: Path, form: str) -> None:
    other = build("temperature.init=0.02", seed=1)
    started = build(f"model.weights={saved(tmp_path, form, other.towers)}")
    for name, tensor in weights_of(other).items():
        assert torch.equal(weights_of(started)[name], tensor), name
    assert started.towers.logit_scale.shape == (1,)


def test_a_temperature_of_the_recipe_counts_over_that_of_the_weights(tmp_path: Path) -> None:
    path = saved(tmp_path, "checkpoint", build("temperature.init=0.02").towers)
    tau = {init: build(f"model.weights={path}", f"temperature.init={init}") for init in ("0.5", "null")}
    assert torch.exp(-tau["0.5"].towers.logit_scale).item() == pytest.approx(0.5)
    bounded = build(f"model.weights={path}", "temperature.minimum=0.04")
    assert torch.exp(-bounded.towers.logit_scale).item() == pytest.approx(0.04)


@pytest.mark.parametrize(("before", "after"), [("neuclip", "siglip"), ("siglip", "neuclip"), ("siglip", "siglip")])
def test_another_objective_may_go_on(tmp_path: Path, before: str, after: str) -> None:
    first = build(f"objective={before}", seed=1)
    if first.towers.logit_bias is not None:
        nn.init.constant_(first.towers.logit_bias, -3.0)
    second = build(f"objective={after}", f"model.weights={saved(tmp_path, 'safetensors', first.towers)}")
    assert torch.equal(second.towers.visual.conv1.weight, first.towers.visual.conv1.weight)
    expected = {"neuclip": None, "siglip": -3.0 if before == "siglip" else -10.0}[after]
    assert (None if second.towers.logit_bias is None else second.towers.logit_bias.item()) == expected


class Malice:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("malice-was-here"),)


def test_a_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"state_dict": Malice()}))
    torch.save({"state_dict": Malice()}, tmp_path / "worse.pt")
    for name in ("bad.pt", "worse.pt"):
        with pytest.raises(UserError, match="does not hold weights"):
            build(f"model.weights={name}")
    assert not (tmp_path / "malice-was-here").exists()


def test_what_is_no_fitting_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nor a tag that open_clip has for scenes-tiny: its tags are none"):
        build("model.weights=nowhere")
    with pytest.raises(UserError, match="did you mean 'openai'"):
        build("model.name=ViT-B-32", "model.weights=openaii")
    path = saved(tmp_path, "safetensors", build(config={**TINY, "embed_dim": 8}).towers)
    with pytest.raises(UserError, match=r"some.safetensors does not hold weights of scenes-tiny"):
        build(f"model.weights={path}")


@pytest.mark.parametrize("config", [TINY, RESNET], ids=["vit", "resnet"])
def test_locked_towers_stay_as_they_are(config: dict[str, Any]) -> None:
    module = build("model.lock_image=0", "model.lock_text=0", config=config)
    settings = load_recipe("demo")
    optimizer = build_optimizer(module, settings.optimizer, settings.temperature)
    assert {group["name"] for group in optimizer.param_groups} == {"temperature"}
    before = {name: tensor.clone() for name, tensor in weights_of(module).items()}
    size = config["vision_cfg"]["image_size"]
    module.train()
    encoded = module(torch.randint(256, (4, 3, size, size), dtype=torch.uint8), torch.ones(4, 8, dtype=torch.int64))
    (encoded.tau * encoded.image_features.square().sum()).backward()
    optimizer.step()
    changed = {name for name, tensor in weights_of(module).items() if not torch.equal(tensor, before[name])}
    assert changed == {"logit_scale"}  # neither weights nor the running statistics of batch normalisation


def test_the_last_groups_can_be_left_to_train() -> None:
    module = build("model.lock_image=1", "model.lock_text=1")
    trained = {name for name, p in module.towers.named_parameters() if p.requires_grad}
    assert {"visual.proj", "logit_scale"} <= trained
    assert not {"visual.conv1.weight", "token_embedding.weight"} & trained
    assert any(not name.startswith(("visual.", "logit")) for name in trained)


def test_patch_dropout_is_for_training_and_for_patches() -> None:
    module = build("model.patch_dropout=0.5", config={**TINY, "vision_cfg": {**TINY["vision_cfg"], "patch_size": 2}})
    images, tokens = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8), torch.ones(2, 8, dtype=torch.int64)
    module.train()
    assert not torch.equal(*(module(images, tokens).image_features for _ in range(2)))
    module.eval()
    assert torch.equal(*(module(images, tokens).image_features for _ in range(2)))
    with pytest.raises(UserError, match="has no patches"):
        build("model.patch_dropout=0.5", config=RESNET)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for setting in ("true", "false"):
        module = build(f"train.activation_checkpointing={setting}")
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)
        encoded = module(images, torch.randint(1, 100, (3, 8), generator=generator))
        (encoded.image_features @ encoded.text_features.T).exp().sum().backward()
        assert module.towers.transformer.grad_checkpointing == (setting == "true")
        gradients.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])
