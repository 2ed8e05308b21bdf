"""Layer-wise decay of the learning rate: which layer a parameter belongs to, and the rate that its group gets."""

from __future__ import annotations

import pytest

from pipeline.config.loader import load_recipe
from pipeline.engine.cost import towers_on_meta
from pipeline.engine.layer_rates import distances
from pipeline.engine.optimizer import build_optimizer
from pipeline.engine.train_module import build_train_module
from tests.distributed.training_support import TINY

EXPECTED = {  # of the image tower: distance -> a parameter there
    "ViT-B-32": {
        0: "visual.proj",
        1: "visual.transformer.resblocks.11.ln_1.weight",
        12: "visual.transformer.resblocks.0.attn.out_proj.weight",
        13: "visual.conv1.weight",
    },
    "RN50": {0: "visual.attnpool.c_proj.weight", 1: "visual.layer4.2.conv1.weight", 5: "visual.conv1.weight"},
    "convnext_base": {
        0: "visual.head.proj.weight",
        1: "visual.trunk.stages.3.blocks.2.norm.weight",
        5: "visual.trunk.stem.0.weight",
    },
    "ViT-B-16-SigLIP": {
        0: "visual.trunk.attn_pool.q.weight",
        1: "visual.trunk.blocks.11.norm1.weight",
        13: "visual.trunk.patch_embed.proj.weight",
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_parameters_layer(name: str) -> None:
    towers = towers_on_meta(load_recipe("cc3m", [f"model.name={name}"]))
    found = distances(f"towers.{parameter}" for parameter, _ in towers.named_parameters())
    for distance, parameter in EXPECTED[name].items():
        assert found[f"towers.{parameter}"] == distance, parameter
    of_image = {distance for parameter, distance in found.items() if parameter.startswith("towers.visual.")}
    assert of_image == set(range(max(EXPECTED[name]) + 1))  # no layer is left out
    of_text = {found[f"towers.{p}"] for p, _ in towers.named_parameters() if p.endswith("token_embedding.weight")}
    assert of_text == {13}


def test_every_parameter_once_with_its_rate() -> None:
    deep = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 3}}
    config = load_recipe("demo", [f"model.config={deep}", "optimizer={lr: 1.0, layer_decay: 0.5, weight_decay: 0.2}"])
    module = build_train_module(config)
    optimizer = build_optimizer(module, config.optimizer, config.temperature)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    grouped = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(grouped) == set(names.values())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    rates = {name: group["lr"] for name, group in grouped.items()}
    assert rates["towers.visual.proj"] == 1.0
    assert rates["towers.visual.transformer.resblocks.2.mlp.c_fc.bias"] == 0.5
    assert rates["towers.visual.transformer.resblocks.0.mlp.c_fc.weight"] == 0.125
    assert rates["towers.visual.conv1.weight"] == 0.0625
    assert rates["towers.transformer.resblocks.0.mlp.c_fc.weight"] == 0.5  # the text tower has one layer
    assert rates["towers.logit_scale"] == config.temperature.lr
    for name, group in grouped.items():
        vector = dict(module.named_parameters())[name].ndim < 2
        assert group["weight_decay"] == (0.0 if vector or ".ln_" in name else 0.2), name


def test_without_it_the_groups_are_open_clips() -> None:
    config = load_recipe("demo", [f"model.config={TINY}"])
    optimizer = build_optimizer(build_train_module(config), config.optimizer, config.temperature)
    assert [(group["name"], group["rate_factor"]) for group in optimizer.param_groups] == [
        ("decay", 1.0),
        ("no_decay", 1.0),
        ("temperature", 1.0),
    ]
