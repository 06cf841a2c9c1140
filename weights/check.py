"""What a model file is, and what is wrong with it, told from its header."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from weights import fp8, gemma, stamp
from weights.checkpoint import Checkpoint, layout
from weights.errors import WeightsFileError
from weights.header import Header, layout_md5
from weights.lora import Lora, is_lora
from weights.manifest import Manifest
from weights.names import KINDS, kind_of
from weights.release import LAYOUT_MD5, RELEASE, published_transformer, release_of
from weights.text_encoder import TextEncoderFiles


@dataclass(frozen=True)
class Report:
    """What was found."""

    what: str
    """Which model it is."""
    facts: tuple[str, ...]
    faults: tuple[str, ...]
    """What is missing, unexpected, misshapen, or not as published; none for a file that is in order."""


def inspect(path: Path, *, manifest: Manifest, checkpoint: Path | None = None) -> Report:
    """Reads the header of the file `path`, or those of the folder.

    A LoRA is held against `checkpoint`, or against the published LTX-2.3.
    Raises: WeightsFileError if there is nothing that has a header.
    """
    if path.is_dir():
        return _folder(path)
    header = Header.read(path)
    faults = []
    try:
        stamp.check(header, manifest=manifest)
    except WeightsFileError as error:
        faults.append(str(error))
    if is_lora(header):
        report = _lora(header, checkpoint)
    elif "config" in header.metadata:
        report = _checkpoint(Checkpoint.open(path))
    elif gemma.SENTENCEPIECE in header.tensors:
        report = _text_encoder(path)
    elif any(gemma.is_part(name) for name in header.tensors):
        report = Report("a part of a Gemma 3; check the folder it lies in", (), ())
    else:
        report = Report("no model that ltxd knows", (), (f"{path}: found none of the names of {RELEASE} or Gemma 3",))
    return Report(report.what, (*_size(header, manifest), *report.facts), (*faults, *report.faults))


def _size(header: Header, manifest: Manifest) -> list[str]:
    file = manifest.of_path(header.path)
    known = f"; {file.name} of {file.repository}" if file is not None else "; none that ltxd fetches is called so"
    kinds = Counter(stored.dtype for stored in header.tensors.values())
    types = ", ".join(f"{count:,} {dtype}" for dtype, count in kinds.most_common())
    return [f"{header.size:,} bytes{known}", f"{len(header.tensors):,} tensors: {types}"]


def _folder(path: Path) -> Report:
    try:
        opened = Checkpoint.open(path)
    except WeightsFileError:
        if not (path / "config.json").is_file():
            raise
        return _text_encoder(path)
    return _checkpoint(opened)


def _checkpoint(opened: Checkpoint) -> Report:
    if not opened.arguments and "transformer" not in opened.config:
        return _components(opened, "a latent upsampler", ["upsampler"])
    release = RELEASE
    if not opened.arguments:
        release = release_of(opened.config["transformer"], opened.model_version)
    scaled = len(fp8.scaled(opened.tensors))
    form = "folder of diffusers" if opened.arguments else "single file"
    what = f"{release}, {form}, {f'fp8 in {scaled:,} Linears' if scaled else 'no fp8'}"
    if release != RELEASE:
        return Report(what, (), (f"{opened.path}: found {release}; expected {RELEASE}",))
    kinds = opened.arguments or [kind for kind in KINDS if kind != "upsampler"]
    report = _components(opened, what, list(kinds))
    strays = sorted(name for name in opened.tensors if not opened.arguments and kind_of(name) is None)
    faults = [f"{opened.path}: {len(strays)} unexpected: {', '.join(strays[:5])}"] if strays else []
    plain = ((name, stored.shape) for name, stored in opened.tensors.items() if not name.endswith(fp8.SCALES))
    same = "those" if layout_md5(plain) == LAYOUT_MD5 else "not those"
    facts = (
        f"model_version {opened.model_version or 'not said'}{', demo weights' if opened.is_demo else ''}",
        f"names and shapes: {same} of the published single files",
    )
    return Report(what, (*facts, *report.facts), (*faults, *report.faults))


def _components(opened: Checkpoint, what: str, kinds: list[str]) -> Report:
    facts, faults = [], []
    for kind in KINDS:
        if kind not in kinds:
            continue
        try:
            layout(opened, kind)
        except WeightsFileError as error:
            faults.append(str(error))
        else:
            facts.append(f"{kind}: {len(opened.tensor_names(kind)):,} tensors, all as its configuration says")
    return Report(what, tuple(facts), tuple(faults))


def _text_encoder(path: Path) -> Report:
    try:
        files = TextEncoderFiles.open(path)
    except WeightsFileError as error:
        return Report("a text encoder", (), (str(error),))
    text = files.config.text_config
    return Report(
        f"Gemma 3, {text.num_hidden_layers} layers, {text.hidden_size} channels, {text.vocab_size:,} words",
        (f"{len(files.tensors):,} tensors, all as its configuration says",),
        (),
    )


def _lora(header: Header, checkpoint: Path | None) -> Report:
    against = RELEASE if checkpoint is None else checkpoint.name
    shapes = published_transformer() if checkpoint is None else Checkpoint.open(checkpoint).shapes
    try:
        lora = Lora.open(header.path, shapes=shapes)
    except WeightsFileError as error:
        return Report("a LoRA", (f"held against {against}",), (str(error),))
    ranks = Counter(lora.ranks)
    shown = ", ".join(f"{rank} ({count:,})" for rank, count in sorted(ranks.items(), reverse=True))
    matrices = sum(name.endswith(".weight") and len(shape) == 2 for name, shape in shapes.items())
    return Report(f"a LoRA for {against}", (f"{len(lora.targets):,} targets of {matrices:,}", f"ranks: {shown}"), ())
