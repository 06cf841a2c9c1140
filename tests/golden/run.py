"""Holds our code against golden cases, made by the model authors' own code: `python tests/golden/run.py DIR`.

A case is a sidecar NAME.json beside NAME.safetensors. The tiny checkpoint that a sidecar names is built from its
layout and salt, and its digests are checked. Prints the relative L2 distance of every tensor, and `N passed, N failed`
(cases) as the last line; the exit status is 1 if any failed. A tensor that the sidecar tells of and the file lacks is
held against its shape, norm and mean.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.golden import cases, parts

T = TypeVar("T")
LEFT_OUT = ("alt_fp32_fuse.",)
"""Tensors that the golden README asks to leave out: they come from another way to fuse a LoRA."""
EXACT = ("noise_", "step_noise.", "video_positions", "audio_positions", "video_denoise_mask", "mask_", "input_ids")
DTYPES = {"fp32": ("float32", torch.float32), "bf16": ("bfloat16", torch.bfloat16)}
BF16_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Row:
    """How far one tensor of ours is from the reference's; what is wrong with it, if it cannot be compared."""

    case: str
    tensor: str
    distance: float
    tolerance: float
    wrong: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is near enough."""
        return not self.wrong and self.distance <= self.tolerance


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; gives the exit status."""
    parser = argparse.ArgumentParser(description="Holds our code against golden cases.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="Folder of sidecars and tensors.")
    parser.add_argument("--only", default="", metavar="PREFIX", help="Only cases whose name begins so.")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sidecars = [path for path in sorted(args.folder.glob("*.json")) if _is_sidecar(path)]
    for stray in {path.stem for path in args.folder.glob("*.safetensors")} - {path.stem for path in sidecars}:
        sys.stderr.write(f"{stray}.safetensors has no sidecar: it is passed over\n")
    sidecars = [path for path in sidecars if path.name.startswith(args.only)]
    if not sidecars:
        sys.stderr.write(f"{args.folder}: there is no golden case (NAME.json beside NAME.safetensors)\n")
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="ltxd-golden-") as scratch:
        for sidecar in sidecars:
            rows = list(check(sidecar, scratch=Path(scratch)))
            _print(rows)
            good = all(row.passed for row in rows)
            passed, failed = passed + good, failed + (not good)
    sys.stdout.write(f"{passed} passed, {failed} failed\n")
    return 0 if passed and not failed else 1


def check(sidecar: Path, *, scratch: Path) -> Iterator[Row]:
    """Every tensor of one case; a row that says what is wrong if the case cannot be run or compared."""
    name = sidecar.stem
    try:
        facts = json.loads(sidecar.read_text("utf-8"))
        expected = _wanted(load_file(sidecar.with_suffix(".safetensors")))
        about = _wanted(facts["tensors"])
        if untold := expected.keys() - about.keys():
            raise ValueError(f"the file has tensors that the sidecar does not name: {sorted(untold)}")
        models = checkpoint(facts, sidecar.parent, scratch=scratch)
        found = tensors(facts, sidecar.parent, models=models, about=about, output=scratch / f"{name}.mp4")
        yield from [
            compare(name, key, expected.get(key), found.get(key), about=entry, dtype=facts["dtype"])
            for key, entry in about.items()
        ]
    except Exception as error:  # noqa: BLE001 whatever ends a case fails it, and the others still run
        yield Row(name, "-", float("inf"), 0.0, wrong=f"{type(error).__name__}: {error}")


def _wanted(named: Mapping[str, T]) -> dict[str, T]:
    return {key: value for key, value in named.items() if not key.startswith(LEFT_OUT)}


def tensors(
    facts: Mapping[str, Any], folder: Path, *, models: Path, about: Mapping[str, Mapping[str, Any]], output: Path
) -> Mapping[str, Tensor]:
    """What our code makes of a case, of whose tensors `about` tells."""
    params, (word, dtype) = facts["params"], DTYPES[facts["dtype"]]
    if "prompts" in params:
        return parts.prompts(params, models=models, dtype=dtype)
    if "connector_valid" in params:
        return parts.components(params, models=models, dtype=dtype, about=about)
    image = start_image(facts, folder, models) if cases.is_pictured(params, about) else None
    case = cases.generation(params, image=image, names=about)
    fused = [name.removeprefix("fused.") for name in about if name.startswith("fused.")]
    return cases.run(case, cases.load(case, models=models, dtype=word), output=output, fused=fused)


def checkpoint(facts: Mapping[str, Any], folder: Path, *, scratch: Path) -> Path:
    """Folder of the checkpoint that a sidecar names, built where it is not yet there.

    Raises: ValueError if its digests are not the sidecar's.
    """
    layout = next((p for p in (folder / facts["layout"], folder.parent / facts["layout"]) if p.is_file()), None)
    if layout is None:
        raise ValueError(f"{facts['layout']} lies neither in {folder} nor in its parent")
    words = json.dumps([layout.read_text("utf-8"), facts["salt"], facts["dtype"]])
    built = scratch / hashlib.sha256(words.encode()).hexdigest()[:16]
    digests = built / "digests.json"
    if not digests.is_file():
        digests.write_text(json.dumps(build(layout, built, salt=facts["salt"], dtype=facts["dtype"])))
    found = json.loads(digests.read_text())
    for name, digest in facts["file_digests"].items():
        if name != "image_pixels_sha256" and found.get(name) != digest:
            raise ValueError(f"{name} has the digest {found.get(name)}, the sidecar says {digest}")
    return built


def build(layout: Path, folder: Path, *, salt: str, dtype: str) -> dict[str, str]:
    """Writes the checkpoint of `layout` and `salt` into `folder`; gives the digests of its files."""
    with warnings.catch_warnings():
        # the script leaves closing its files to the interpreter
        warnings.simplefilter("ignore", ResourceWarning)
        made = _canonical().write(layout, folder, salt, dtype)
    return {name: info["digest"] for name, info in made.items()}


def start_image(facts: Mapping[str, Any], folder: Path, models: Path) -> Path:
    """The start image: of the folder, its parent or the checkpoint, whichever is the sidecar's.

    Raises: ValueError if none is.
    """
    wanted = facts["file_digests"]["image_pixels_sha256"]
    for place in (folder, folder.parent, models):
        path = place / "image.png"
        if path.is_file():
            with Image.open(path) as picture:
                of_pixels = picture.convert("RGB").tobytes()
            # the public sidecars hold that of the pixels, the golden README speaks of the file's
            if wanted in {hashlib.sha256(data).hexdigest() for data in (of_pixels, path.read_bytes())}:
                return path
    raise ValueError(f"no image.png in {folder}, its parent or the checkpoint has the sha256 {wanted}")


def compare(
    case: str, name: str, expected: Tensor | None, found: Tensor | None, *, about: Mapping[str, Any], dtype: str
) -> Row:
    """How far `found`, whole, is from `expected`, every so-manieth value or none, and what is told of it."""
    limit = tolerance(name, dtype=dtype)
    if found is None:
        return Row(case, name, float("inf"), limit, wrong="not made")
    if list(found.shape) != about["full_shape"]:
        return Row(case, name, float("inf"), limit, wrong=f"is {list(found.shape)}, not {about['full_shape']}")
    whole = found.double()
    if not torch.isfinite(whole).all():
        return Row(case, name, float("inf"), limit, wrong="is not finite")
    if math.isinf(limit):
        return Row(case, name, 0.0, limit)
    slack = (limit + 1e-6) * about["norm"] + 1e-6
    wrong = ""
    if abs(whole.norm().item() - about["norm"]) > slack:
        wrong = f"has the norm {whole.norm().item():.9g}, not {about['norm']:.9g}"
    elif abs(whole.mean().item() - about["mean"]) > slack / math.sqrt(whole.numel()):
        wrong = f"has the mean {whole.mean().item():.9g}, not {about['mean']:.9g}"
    if expected is None:
        off = abs(whole.norm().item() - about["norm"]) / max(about["norm"], 1e-12)
        return Row(case, name, off, limit + 1e-6, wrong=wrong)
    ours = whole[tuple(slice(None, None, step) for step in about.get("stride", ()))]
    if ours.shape != expected.shape:
        return Row(case, name, float("inf"), limit, wrong=f"is {list(ours.shape)} after its stride")
    reference = expected.double()
    off = ((ours - reference).norm() / reference.norm().clamp(min=1e-12)).item()
    return Row(case, name, off, limit, wrong=wrong)


def tolerance(name: str, *, dtype: str = "fp32") -> float:
    """Relative L2 distance allowed; infinite for a waveform in bfloat16, which is not compared value by value.

    Source: the golden files' own limits (README, section 11).
    """
    if dtype != "fp32":
        return float("inf") if "wave" in name else BF16_TOLERANCE
    bare = name.removeprefix("stage1.").removeprefix("stage2.").removeprefix("dit.")
    last = bare.rpartition(".")[2]
    if bare.startswith(EXACT) or last in ("input_ids", "num_valid"):
        return 0.0
    if bare.startswith(("image_pixels", "fused.", "sigmas", "schedule.", "schedule_fp32_official.")):
        return 1e-6
    if last == "sigma":
        return 1e-6
    if bare in ("video_latent", "audio_latent", "upsampled", "frames", "frames_u8"):
        return 1e-4
    if bare == "wave":
        return 1e-3
    if bare.startswith("call"):
        return 1e-5 if bare.startswith("call00.") and not name.startswith("stage2.") else 1e-4
    return 1e-5


def _is_sidecar(path: Path) -> bool:
    """Whether `path` is to describe a case: it has tensors beside it or says so; layouts may lie there as well."""
    if path.with_suffix(".safetensors").is_file():
        return True
    try:
        facts = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError):
        return False
    return isinstance(facts, dict) and "case" in facts


def _print(rows: Sequence[Row]) -> None:
    for row in rows:
        mark = "ok  " if row.passed else "FAIL"
        told = f"  {row.wrong}" if row.wrong else ""
        sys.stdout.write(
            f"{mark} {row.case:26} {row.tensor:52} {row.distance:9.2e}  limit {row.tolerance:.0e}{told}\n"
        )
    sys.stdout.flush()


def _canonical() -> Any:
    path = Path(__file__).with_name("canonical.py")
    spec = importlib.util.spec_from_file_location("canonical", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
