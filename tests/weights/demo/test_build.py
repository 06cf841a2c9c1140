import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from safetensors.torch import load_file, save_file

from weights import config, names
from weights.checkpoint import Checkpoint, load_component
from weights.demo import build, train_connectors, train_transformer
from weights.errors import WeightsFileError
from weights.lora import fuse_lora
from weights.text_encoder import load_text_encoder


@pytest.fixture(scope="module")
def states():
    torch.manual_seed(0)
    modules = LTX2VideoTransformer3DModel(**train_transformer.CONFIG), LTX2TextConnectors(**train_connectors.CONFIG)
    return [module.state_dict() for module in modules]


@pytest.fixture(scope="module")
def trained(states, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "new" / "trained.safetensors"
    build.write_trained(*states, path)
    return path


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "demo"
    build.build(folder, trained=trained)
    return folder


def test_the_folder_holds_the_four_parts_and_nothing_is_left_beside_it(folder):
    assert {path.name for path in folder.iterdir()} == {build.CHECKPOINT, build.UPSAMPLER, build.LORA, "gemma"}
    assert [path.name for path in folder.parent.iterdir()] == ["demo"]


def test_the_checkpoint_says_that_it_is_a_demo(folder):
    checkpoint = Checkpoint.open(folder / build.CHECKPOINT)
    assert checkpoint.is_demo
    assert checkpoint.model_version == "2.3.0-demo"


@pytest.mark.parametrize("kind", names.KINDS)
def test_every_component_loads_as_a_published_one_does(folder, kind):
    path = folder / (build.UPSAMPLER if kind == "upsampler" else build.CHECKPOINT)
    module = load_component(Checkpoint.open(path), kind, dtype=torch.bfloat16, device="cpu")
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_trained_weights_come_back_as_bfloat16(folder, states):
    checkpoint = Checkpoint.open(folder / build.CHECKPOINT)
    for kind, state in zip(("transformer", "connectors"), states, strict=True):
        module = load_component(checkpoint, kind, dtype=torch.bfloat16, device="cpu")
        assert all(torch.equal(value, state[name].bfloat16()) for name, value in module.state_dict().items())


def test_the_configuration_describes_what_was_trained():
    ours = config.transformer_arguments(build.demo_config()["transformer"])
    for name, value in train_transformer.CONFIG.items():
        assert ours[name] == value, name


def test_the_lora_moves_every_matrix_a_little(folder, states):
    transformer = load_component(
        Checkpoint.open(folder / build.CHECKPOINT), "transformer", dtype=torch.float32, device="cpu"
    )
    changed = fuse_lora(transformer, folder / build.LORA, strength=0.5)
    matrices = [name for name, value in states[0].items() if value.dim() == 2 and name.endswith(".weight")]
    assert changed == len(matrices)
    for name in matrices:
        before, after = states[0][name].bfloat16().float(), transformer.state_dict()[name]
        assert 0 < (after - before).abs().mean().item() < 1e-3


def test_the_text_encoder_loads(folder):
    assert load_text_encoder(folder / "gemma", dtype=torch.bfloat16, device="cpu").model.dtype is torch.bfloat16


def test_building_again_replaces_the_demo(folder, trained, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / build.CHECKPOINT).write_bytes(b"old")
    build.build(tmp_path / "demo", trained=trained)
    ours, again = (load_file(place / build.CHECKPOINT) for place in (folder, tmp_path / "demo"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in ours.items())
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_folder_with_something_else_is_left_alone(trained, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(WeightsFileError, match="something else"):
        build.build(tmp_path, trained=trained)
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_trained_file_that_does_not_fit_leaves_no_folder(trained, tmp_path):
    tensors = load_file(trained)
    del tensors["model.diffusion_model.proj_out.bias"]
    save_file(tensors, tmp_path / "short.safetensors")
    with pytest.raises(
        WeightsFileError, match=r"short.safetensors: found what does not fit .* 1 missing: .*proj_out.bias"
    ):
        build.build(tmp_path / "demo", trained=tmp_path / "short.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["short.safetensors"]


@pytest.mark.parametrize(("content", "says"), [(None, "no such file"), (b"\x00" * 9, "expected a safetensors file")])
def test_a_trained_file_that_is_none_is_refused(tmp_path, content, says):
    path = tmp_path / "trained.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsFileError, match=says):
        build.build(tmp_path / "demo", trained=path)
