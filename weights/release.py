"""Which release of LTX-2 a checkpoint is, and what the published LTX-2.3 looks like."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from accelerate import init_empty_weights

from weights import config, names
from weights.checkpoint import Checkpoint
from weights.errors import WeightsFileError

RELEASE: Final = "LTX-2.3"
LAYOUT_MD5: Final = "f3a83ecf3995dcc4fae2d27e08ad5767"
"""Of names and shapes of the published single files, scales of fp8 left out.

Source: modelscope/DiffSynth-Studio, diffsynth/configs/model_configs.py.
"""
_CAPTIONS: Final[Mapping[str, bool]] = {
    "caption_proj_before_connector": True,
    "caption_proj_input_norm": False,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
}
"""What 2.3 says of its text projection; 2.0 says nothing of it. Source: Lightricks/LTX-2 1.2.0, text encoder."""
_ONLY_2_5: Final[Mapping[str, bool]] = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
"""What 2.5 says and 2.3 does not. Source: both embedded configurations."""


def release_of(transformer: Mapping[str, Any], model_version: str) -> str:
    """The release whose transformer is configured like this."""
    if model_version.startswith("2.5") or any(transformer.get(name) == value for name, value in _ONLY_2_5.items()):
        return "LTX-2.5"
    if not _CAPTIONS.keys() & transformer.keys():
        return "LTX-2.0"
    # files that others have converted leave some of these out
    if any(transformer.get(name, value) != value for name, value in _CAPTIONS.items()):
        return "an unknown release of LTX-2"
    return RELEASE


def require_2_3(checkpoint: Checkpoint) -> None:
    """Passes LTX-2.3. Raises: WeightsFileError."""
    if checkpoint.arguments:  # a folder of diffusers, which was held against 2.3 when opened
        return
    found = "a file without a transformer"
    if "transformer" in checkpoint.config:
        found = release_of(checkpoint.config["transformer"], checkpoint.model_version)
    if found != RELEASE:
        raise WeightsFileError(checkpoint.path, found=found, expected=RELEASE)


def published_config() -> dict[str, Any]:
    """The configuration that the published files carry."""
    parsed: dict[str, Any] = json.loads(resources.files("weights").joinpath("ltx-2.3.json").read_text("utf-8"))
    return parsed


def published_transformer() -> dict[str, tuple[int, ...]]:
    """Shapes of the published transformer, under their published names."""
    with init_empty_weights():
        module = config.build("transformer", published_config(), {})
    return {names.to_published(name, "transformer"): tuple(value.shape) for name, value in module.state_dict().items()}
