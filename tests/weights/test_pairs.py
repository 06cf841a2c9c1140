"""Files that are not whole or do not belong together are refused from their headers, before a tensor is read."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights import stamp, stream
from weights.checkpoint import Checkpoint
from weights.errors import WeightsFileError
from weights.header import Header
from weights.manifest import Manifest, PublishedFile
from weights.pairs import check_files

NAME = "ltx-2.3-tiny.safetensors"
LORA = "ltx-2.3-tiny-distilled-lora.safetensors"
UPSAMPLER = "ltx-2.3-tiny-spatial-upscaler-x2.safetensors"


@pytest.fixture(autouse=True)
def no_tensor_is_read(monkeypatch):
    """Any attempt to read one fails the test."""

    def never(*_args, **_kwargs):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(stream, "safe_open", never)


@pytest.fixture
def check(tiny):
    def check(**changes):
        files = {
            "checkpoint": tiny / NAME,
            "text_encoder": tiny / "gemma",
            "lora": tiny / LORA,
            "upsampler": tiny / UPSAMPLER,
        }
        check_files(**(files | changes))

    return check


def rewritten(source, target, change, **metadata):
    """`source` with its configuration changed."""
    config = json.loads(json.dumps(dict(Checkpoint.open(source).config)))
    change(config)
    save_file(load_file(source), target, metadata={"config": json.dumps(config)} | metadata)
    return target


def test_files_that_belong_together_pass(check):
    check()
    check(lora=None, upsampler=None)


def test_a_folder_of_diffusers_passes_with_its_own_text_encoder_and_upsampler(check, diffusers_folder):
    check(
        checkpoint=diffusers_folder,
        text_encoder=diffusers_folder,
        upsampler=diffusers_folder / "latent_upsampler",
    )


def test_a_checkpoint_of_2_0_is_refused(tiny, check, tmp_path):
    def change(config):
        for name in [name for name in config["transformer"] if name.startswith("caption_proj")]:
            del config["transformer"][name]

    path = rewritten(tiny / NAME, tmp_path / "old.safetensors", change)
    with pytest.raises(WeightsFileError, match=r"old\.safetensors: found LTX-2\.0; expected LTX-2\.3"):
        check(checkpoint=path)


@pytest.mark.parametrize(
    ("change", "version"),
    [
        (lambda config: config["transformer"].update(ff_bias=False), "2.3.0"),
        (lambda config: config["transformer"].update(use_keyframes_abs_pos_embedding=True), ""),
        (dict, "2.5.0"),
    ],
)
def test_a_checkpoint_of_2_5_is_refused(tiny, check, tmp_path, change, version):
    path = rewritten(tiny / NAME, tmp_path / "new.safetensors", change, model_version=version)
    with pytest.raises(WeightsFileError, match=r"new\.safetensors: found LTX-2\.5; expected LTX-2\.3"):
        check(checkpoint=path)


def test_a_converted_checkpoint_that_says_less_of_its_captions_passes(tiny, check, tmp_path):
    def change(config):
        del config["transformer"]["caption_proj_input_norm"], config["transformer"]["caption_projection_first_linear"]

    check(checkpoint=rewritten(tiny / NAME, tmp_path / "converted.safetensors", change))


def test_an_upsampler_in_the_place_of_the_checkpoint_is_refused(tiny, check):
    with pytest.raises(WeightsFileError, match=r"found a file without a transformer; expected LTX-2\.3"):
        check(checkpoint=tiny / UPSAMPLER)


def test_a_lora_of_another_model_is_refused(tiny, check, tmp_path):
    other = {name.replace("attn1", "self_attn"): value for name, value in load_file(tiny / LORA).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(WeightsFileError, match=r"other\.safetensors: found 74 targets, \d+ of which name no matrix"):
        check(lora=tmp_path / "other.safetensors")


def test_a_gemma_of_another_size_is_refused(tiny, check, tmp_path):
    shutil.copytree(tiny / "gemma", tmp_path / "gemma")
    settings = json.loads((tmp_path / "gemma" / "config.json").read_text())
    settings["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    (tmp_path / "gemma" / "config.json").write_text(json.dumps(settings))
    tensors = load_file(tiny / "gemma" / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if "language_model.model.layers.1." not in name}
    save_file(kept, tmp_path / "gemma" / "model.safetensors")
    with pytest.raises(
        WeightsFileError,
        match=r"gemma: found a Gemma 3 of 1 layers and 32 channels, which gives 64 features a token; "
        r"expected the one that ltx-2\.3-tiny\.safetensors was trained with, which gives 96",
    ):
        check(text_encoder=tmp_path / "gemma")


@pytest.mark.parametrize("entry", [{"spatial_upsample": False, "temporal_upsample": True}, {"in_channels": 64}])
def test_an_upsampler_of_another_kind_is_refused(tiny, check, tmp_path, entry):
    path = rewritten(tiny / UPSAMPLER, tmp_path / "up.safetensors", lambda config: config.update(entry))
    with pytest.raises(WeightsFileError, match=r"up\.safetensors: found"):
        check(upsampler=path)


def test_a_file_cut_short_is_refused(tiny, check, tmp_path):
    path = tmp_path / NAME
    path.write_bytes((tiny / NAME).read_bytes()[:-1])
    with pytest.raises(
        WeightsFileError, match=r"found [\d,]+ bytes; expected [\d,]+ by its own header; it is cut short"
    ):
        check(checkpoint=path)


@pytest.fixture
def stamped(tiny, tmp_path):
    path = tmp_path / NAME
    shutil.copy(tiny / NAME, path)
    stamp.write(path, sha256="f" * 64)
    return path


def test_a_stamped_file_passes_until_it_is_touched(check, stamped):
    check(checkpoint=stamped)
    os.utime(stamped, ns=(0, 0))
    with pytest.raises(WeightsFileError) as caught:
        check(checkpoint=stamped)
    assert str(caught.value) == (
        f"{stamped}: found another time of the last change than when its sum was last taken; expected the file with "
        f"sha256 {'f' * 64}. To mend it: ltxd weights check --sha256 {stamped}"
    )


def test_a_file_with_another_header_than_its_stamp_is_refused_although_size_and_time_are_the_same(check, stamped):
    before = stamped.stat()
    raw = stamped.read_bytes()
    stamped.write_bytes(raw.replace(b'"model_version":"2.3.0"', b'"model_version":"2.3.1"', 1))
    os.utime(stamped, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamped.read_bytes() != raw
    with pytest.raises(WeightsFileError, match="found another header than"):
        check(checkpoint=stamped)


def test_a_file_called_like_a_published_one_has_its_size(tiny, tmp_path):
    path = tmp_path / "ltx-2.3-22b-dev.safetensors"
    shutil.copy(tiny / NAME, path)
    with pytest.raises(WeightsFileError, match=r"expected 46,149,344,974, as Lightricks/LTX-2\.3 has published it"):
        check_files(checkpoint=path, text_encoder=tiny / "gemma", lora=None, upsampler=None)


@pytest.fixture
def gemma(tiny, tmp_path):
    """The text encoder under the name of the published one, its tokenizer as long as that."""
    folder = tmp_path / "gemma-3-12b-it-qat-q4_0-unquantized"
    shutil.copytree(tiny / "gemma", folder)
    with (folder / "tokenizer.json").open("ab") as file:
        file.write(b" " * (33_384_570 - file.tell()))
    return folder


def test_a_tokenizer_cut_short_is_refused(check, gemma):
    check(text_encoder=gemma)
    os.truncate(gemma / "tokenizer.json", 20_000)
    with pytest.raises(WeightsFileError) as caught:
        check(text_encoder=gemma)
    assert str(caught.value) == (
        f"{gemma}/tokenizer.json: found 20,000 bytes; expected 33,384,570, as "
        "google/gemma-3-12b-it-qat-q4_0-unquantized has published it"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_beside_the_tensors_that_changed_since_its_stamp_is_refused(check, gemma, name):
    stamp.write(gemma / name, sha256="e" * 64)
    check(text_encoder=gemma)
    os.utime(gemma / name, ns=(0, 0))
    with pytest.raises(WeightsFileError) as caught:
        check(text_encoder=gemma)
    assert str(caught.value) == (
        f"{gemma}/{name}: found another time of the last change than when its sum was last taken; expected the file "
        f"with sha256 {'e' * 64}. To mend it: ltxd weights check --sha256 {gemma}"
    )


def test_a_stamp_that_is_no_stamp_counts_for_nothing(stamped):
    file = PublishedFile("x", "r", "c", NAME, None, None, gated=False, terms="")
    stamp.place(stamped).write_text("{}")
    assert stamp.Stamp.read(stamped) is None
    assert not stamp.is_current(stamped, file)
    stamp.check(Header.read(stamped), manifest=Manifest(()))


def test_a_lora_may_be_left_out_but_not_be_a_picture(tmp_path, check):
    (tmp_path / "lora.png").write_bytes(b"\x89PNG\r\n\x1a\n" * 4)
    with pytest.raises(WeightsFileError, match=r"lora\.png: found"):
        check(lora=tmp_path / "lora.png")


def test_the_fixture_would_notice_a_read(tiny):
    from weights.checkpoint import load_component

    with pytest.raises(AssertionError, match="a tensor was read"):
        load_component(Checkpoint.open(tiny / NAME), "vae", dtype=torch.float32, device="cpu")
