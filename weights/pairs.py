"""Whether the files of a recipe are whole and belong together: known from their headers, before anything is loaded."""

from pathlib import Path
from typing import Any, Final

from weights import stamp
from weights.checkpoint import Checkpoint, layout
from weights.errors import WeightsFileError
from weights.header import Header
from weights.lora import Lora
from weights.manifest import load_manifest
from weights.names import KINDS
from weights.release import require_2_3
from weights.text_encoder import TextEncoderFiles

_PROJECTION: Final = "text_embedding_projection.video_aggregate_embed.weight"
_LATENTS: Final = "vae.per_channel_statistics.mean-of-means"


def check_files(*, checkpoint: Path, text_encoder: Path, lora: Path | None, upsampler: Path | None) -> None:
    """Passes files that are whole and fit each other, as far as headers, sizes and stamps tell.

    Raises: WeightsFileError for the first that does not.
    """
    opened = Checkpoint.open(checkpoint)
    _check_stamps(*opened.headers)
    require_2_3(opened)
    for kind in KINDS:
        if kind != "upsampler":
            layout(opened, kind)
    _check_text_encoder(opened, TextEncoderFiles.open(text_encoder))
    if lora is not None:
        _check_stamps(Lora.open(lora, shapes=opened.shapes).header)
    if upsampler is not None:
        _check_upsampler(opened, Checkpoint.open(upsampler))


def _check_text_encoder(checkpoint: Checkpoint, files: TextEncoderFiles) -> None:
    _check_stamps(*files.headers)
    for path in files.plain:
        stamp.check_plain(path, manifest=load_manifest())
    _, features = checkpoint.shapes[_PROJECTION]
    if files.features != features:
        text = files.config.text_config
        raise WeightsFileError(
            files.path,
            found=f"a Gemma 3 of {text.num_hidden_layers} layers and {text.hidden_size} channels, "
            f"which gives {files.features:,} features a token",
            expected=f"the one that {checkpoint.path.name} was trained with, which gives {features:,}",
        )


def _check_upsampler(checkpoint: Checkpoint, upsampler: Checkpoint) -> None:
    _check_stamps(*upsampler.headers)
    module: Any = layout(upsampler, "upsampler")
    (channels,) = checkpoint.shapes[_LATENTS]
    settings = module.config
    found = (
        settings.in_channels,
        settings.spatial_upsample,
        settings.temporal_upsample,
        settings.rational_spatial_scale,
    )
    if found != (channels, True, False, 2.0):
        raise WeightsFileError(
            upsampler.path,
            found=f"an upsampler of {found[0]} channels, in space: {found[1]}, in time: {found[2]}, scale {found[3]}",
            expected=f"one of {channels} channels that doubles width and height",
        )


def _check_stamps(*headers: Header) -> None:
    manifest = load_manifest()
    for header in headers:
        stamp.check(header, manifest=manifest)
