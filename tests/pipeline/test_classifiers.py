import json
import socket

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from pipeline import classifiers
from pipeline.errors import WeightsError

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 32, "width": 32},
}


def saved(folder, labels):
    """A tiny image classifier with random weights, in the folder format of the real ones."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return model.eval()


def by_hand(model, picture):
    from PIL import Image

    small = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    pixels = torch.from_numpy(small / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return model(pixel_values=pixels).logits[0].softmax(-1)


@pytest.fixture(scope="module")
def open_nsfw():
    return classifiers.open_nsfw()


def test_open_nsfw_gives_a_share_and_calls_noise_safe(open_nsfw):
    assert open_nsfw.name == "open_nsfw"
    assert 0 <= open_nsfw.score(PICTURE) < 0.2


def test_open_nsfw_scores_the_photos_of_the_demo_as_safe(open_nsfw):
    from pathlib import Path

    from PIL import Image

    photos = sorted(Path("examples/photos").glob("*.jpg"))
    assert len(photos) > 5
    for photo in photos:
        with Image.open(photo) as opened:
            assert open_nsfw.score(np.asarray(opened.convert("RGB"))) < 0.2, photo.name


def test_open_nsfw_needs_no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    classifiers.open_nsfw().score(PICTURE)


@pytest.mark.parametrize(
    ("labels", "unsafe"),
    [
        (["normal", "nsfw"], [1]),
        (["NSFW", "SFW"], [0]),
        (["drawings", "hentai", "neutral", "porn", "sexy"], [1, 3, 4]),
    ],
)
def test_the_score_of_a_folder_is_the_share_of_its_unsafe_classes(tmp_path, labels, unsafe):
    model = saved(tmp_path / "mine", labels)
    classifier = classifiers.load(tmp_path / "mine")
    assert classifier.name == "mine"
    assert classifier.score(PICTURE) == pytest.approx(by_hand(model, PICTURE)[unsafe].sum().item(), abs=1e-3)


def test_another_picture_has_another_score(tmp_path):
    saved(tmp_path, ["normal", "nsfw"])
    classifier = classifiers.load(tmp_path)
    assert classifier.score(PICTURE) != classifier.score(np.zeros_like(PICTURE))


def test_a_classifier_without_an_unsafe_class_is_refused_with_its_classes(tmp_path):
    saved(tmp_path, ["cat", "dog"])
    with pytest.raises(WeightsError, match=r"classes are cat, dog; at least one must be called explicit"):
        classifiers.load(tmp_path)


def test_a_folder_without_the_files_is_refused_by_their_names(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json, preprocessor_config\.json, model\.safetensors missing"):
        classifiers.load(tmp_path / "nowhere")


def test_a_folder_whose_files_are_broken_is_refused(tmp_path):
    saved(tmp_path, ["normal", "nsfw"])
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="does not load as an image classifier"):
        classifiers.load(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    model = saved(tmp_path, ["normal", "nsfw"])
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"model\.safetensors missing"):
        classifiers.load(tmp_path)
