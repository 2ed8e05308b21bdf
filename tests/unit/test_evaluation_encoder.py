"""The encoder: precision, text classifiers made once, texts without padding, and a model loaded without waste."""

import copy

import open_clip
import pytest
import torch
from evaluation_support import MODEL
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.schema import ModelConfig
from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.short_texts import encode_text
from pipeline.models.two_tower import build_two_tower, load_exported

CPU = torch.device("cpu")


def test_bf16_features_are_near_the_fp32_ones_but_not_equal(evaluated):
    exported = load_exported(evaluated / "model", CPU)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, rounded = (
        Encoder(exported, CPU, precision).encode_images(images, ["a"] * 4) for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    difference = (exact - rounded).abs().max()
    assert 1e-5 < difference < 5e-2


def test_tasks_with_the_same_classes_and_templates_share_a_classifier(evaluated):
    encoder = Encoder(load_exported(evaluated / "model", CPU), CPU)
    first = encoder.classifier(["a", "b"], ["{c}", "no {c}"])
    assert encoder.classifier(("a", "b"), ("{c}", "no {c}")) is first
    assert not torch.equal(encoder.classifier(["b", "a"], ["{c}", "no {c}"]), first)
    assert not torch.equal(encoder.classifier(["a", "b"], ["{c}"]), first)


def test_a_classifier_made_in_passes_equals_one_made_class_by_class(evaluated):
    encoder = Encoder(load_exported(evaluated / "model", CPU), CPU)
    names, templates = [f"thing {n}" for n in range(150)], ["a {c}", "{c}", "the {c} {c}"]
    together = encoder.classifier(names, templates)
    for column, name in list(enumerate(names))[::29]:
        assert torch.allclose(together[:, column], encoder.classifier([name], templates)[:, 0], atol=1e-6)


def tower(**text):
    torch.manual_seed(0)
    config = copy.deepcopy(MODEL.config)
    config["text_cfg"] |= text
    model = build_two_tower(ModelConfig(name="tiny", config=config), init_logit_scale=2.66).eval()
    torch.nn.init.normal_(model.get_parameter("token_embedding.weight"))
    return model


def places(model):
    """How many places of each text the tower is given."""
    seen = []
    model.transformer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    return seen


TEXTS = ["a cat", "", "a photo of one dog", "word " * 60]


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[1:2], TEXTS[:3], TEXTS])
def test_padding_is_left_out_and_the_features_are_the_same(texts):
    model, tokens = tower(), open_clip.SimpleTokenizer(context_length=24)(texts)
    seen = places(model)
    with torch.inference_mode():
        found, expected = encode_text(model, tokens), model.encode_text(tokens)
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.equal(encode_text(model, tokens), found)
    longest = min(24, max(2 + len(text.replace("photo", "a").split()) for text in texts))
    assert seen == [longest, 24, longest]
    assert model.positional_embedding.shape == (24, 32)


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "first"}])
def test_a_tower_that_sees_its_padding_is_given_all_of_it(text):
    model, tokens = tower(**text), open_clip.SimpleTokenizer(context_length=24)(TEXTS)
    with torch.inference_mode():
        assert torch.equal(encode_text(model, tokens), model.encode_text(tokens))


class Operations(TorchDispatchMode):
    """The names of the operations inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_loading_fills_no_weights_with_random_numbers_and_gives_open_clips_model(evaluated):
    with Operations() as done:
        found = load_exported(evaluated / "model", CPU).model
    assert not {"normal_", "uniform_"} & done.names
    with Operations() as done:
        expected = open_clip.create_model(f"local-dir:{evaluated / 'model'}").eval()
    assert {"normal_", "uniform_"} <= done.names
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(found, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
