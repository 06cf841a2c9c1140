import importlib.util
import os
import shutil
import warnings
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
# huggingface_hub reads it when it is imported: without it, it calls home before it calls the hub of a test
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of the tiny checkpoint that the golden numbers were made with."""
    spec = importlib.util.spec_from_file_location("canonical", GOLDEN / "canonical.py")
    canonical = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(canonical)
    folder = tmp_path_factory.mktemp("tiny")
    with warnings.catch_warnings():
        # the script leaves closing its files to the interpreter
        warnings.simplefilter("ignore", ResourceWarning)
        canonical.write(GOLDEN / "layout_tiny.json", folder)
    return folder


@pytest.fixture(scope="session")
def diffusers_folder(tiny, tmp_path_factory):
    """The same model as diffusers saves it, the transformer in shards, text encoder and upsampler beside it."""
    import torch

    from weights import names
    from weights.checkpoint import Checkpoint, load_component

    folder = tmp_path_factory.mktemp("diffusers")
    for kind in names.KINDS:
        name = "ltx-2.3-tiny-spatial-upscaler-x2" if kind == "upsampler" else "ltx-2.3-tiny"
        checkpoint = Checkpoint.open(tiny / f"{name}.safetensors")
        module = load_component(checkpoint, kind, dtype=torch.bfloat16, device="cpu")
        if kind == "vocoder":
            # as the conversion script of diffusers leaves it
            module.register_to_config(final_act_fn=None)
        subfolder = folder / ("latent_upsampler" if kind == "upsampler" else kind)
        module.save_pretrained(subfolder, max_shard_size="150KB" if kind == "transformer" else "1GB")
    (folder / "model_index.json").write_text("{}")
    for path in (tiny / "gemma").iterdir():
        target = folder / ("tokenizer" if path.name.startswith("tokenizer") else "text_encoder")
        target.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return folder
