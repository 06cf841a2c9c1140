"""One whole request at the real size, without weights: from files and an image to the MP4, by the product's own path.

python benchmarks/fake_request.py [--size 1280x704] [--frames 121] [--steps 2] [--residency resident]

`loading.load` and `generate.generate` run as they are, under FakeTensorMode, over files that have headers and no
bytes, the device `meta` standing in for the GPU and the CPU for the host: a tensor on the wrong side raises, and so
does a value that is read back. Recorded are the bytes that live on the device at once, phase by phase, and what would
have made the host wait.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import av
import torch
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import hollow_files
from benchmarks.memory import Memory
from benchmarks.stand_in import DEVICE, Device, Waits
from pipeline.generate import generate
from pipeline.loading import Pipeline, load
from pipeline.plan import make_plan
from pipeline.recipe import Recipe
from pipeline.recipe import load as load_recipe
from pipeline.types import GenerationRequest, Size
from weights import stream
from weights.header import Header

PROMPT: Final = "the camera pans left " * 300
"""Longer than what is read of a prompt: 1,024 tokens."""
PHASES: Final = {
    "text_encode": "text",
    "image_encode": "image_encode",
    "denoise": "denoise",
    "upsample": "upsample",
    "decode": "decode",
}
"""Under which name the plan knows what a stage of Progress has ended."""
_DTYPES: Final = {"BF16": torch.bfloat16, "F32": torch.float32}


@dataclass
class Recording:
    """What was seen of one request. Units: bytes on the device."""

    weights: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    """Above the weights, by phase."""
    waits: dict[str, list[str]] = field(default_factory=dict)
    """What made the host wait for the device, by phase."""
    resting: int = 0
    """With all models loaded and nothing to do."""
    left: int = 0
    """When the clip is done."""
    frames: int = 0
    has_sound: bool = False


class _Hollow:
    """Stands in for safetensors' reader: tensors that know their device, and no memory."""

    def __init__(self, path: Path, *, device: str, fake: FakeTensorMode) -> None:
        self._tensors, self._device, self._fake = Header.read(path).tensors, device, fake

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def get_tensor(self, name: str) -> Tensor:
        stored = self._tensors[name]
        with self._fake:
            return torch.empty(stored.shape, dtype=_DTYPES[stored.dtype], device=self._device)


@contextlib.contextmanager
def _reading_hollow_files(fake: FakeTensorMode) -> Iterator[None]:
    """Has tensors read from files that have none: safetensors' own reader cannot make fake ones."""

    def open_hollow(path: Path, *, framework: str, device: str) -> _Hollow:  # noqa: ARG001 as safetensors has it
        return _Hollow(path, device=device, fake=fake)

    reader = stream.safe_open  # type: ignore[attr-defined] # imported there, not exported
    stream.safe_open = open_hollow  # type: ignore[attr-defined, assignment] # it has what is called
    try:
        yield
    finally:
        stream.safe_open = reader  # type: ignore[attr-defined] # as above


class _Watcher:
    """Notes what was seen since the phase before, when a phase has ended."""

    def __init__(self, memory: Memory) -> None:
        self.seen = Recording()
        self.waits: list[str] = []
        self._memory = memory

    def loaded(self, pipeline: Pipeline) -> None:
        """Notes what stays on the device, and listens for the end of the sound, which no Progress tells."""
        parts = {
            "transformer": nn.ModuleList(pipeline.transformers.values()),
            "text_encoder": pipeline.text_encoder.model,
            "connectors": pipeline.connectors,
            "vae": pipeline.vae,
            "audio_vae": pipeline.audio_vae,
            "vocoder": pipeline.vocoder,
        }
        if pipeline.upsampler is not None:
            parts["upsampler"] = pipeline.upsampler
        self.seen.weights.update({name: _held(module) for name, module in parts.items()})
        self.seen.resting = self._memory.live
        self._memory.peak = self._memory.live
        self.waits.clear()
        pipeline.vocoder.register_forward_hook(lambda *_: self.ended("sound"))

    def ended(self, phase: str) -> None:
        """Takes what was seen for that of `phase`."""
        above = self._memory.peak - self.seen.resting
        self.seen.peaks[phase] = max(self.seen.peaks.get(phase, 0), above)
        self.seen.waits.setdefault(phase, []).extend(self.waits)
        self._memory.peak = self._memory.live
        self.waits.clear()


def _held(module: nn.Module) -> int:
    """Bytes of a module on the device."""
    tensors = [*module.parameters(), *module.buffers()]
    storages = {id(storage): storage for t in tensors if t.device == DEVICE and (storage := t.untyped_storage())}
    return sum(storage.nbytes() for storage in storages.values())


def request(
    *, size: Size, frames: int, steps: int = 2, guidance_scale: float = 1.0, image: Path | None = None
) -> GenerationRequest:
    """A request for such a clip."""
    return GenerationRequest(
        prompt=PROMPT,
        image=image,
        image_size=None,
        seed=0,
        negative_prompt="",
        size=size,
        num_frames=frames,
        fps=24.0,
        steps=steps,
        guidance_scale=guidance_scale,
        strength=0.7,
        audio=True,
        expand_prompt=False,
        check_safety=False,
        quality="high",
        write_mode="fast",
    )


def record(
    *,
    size: Size,
    frames: int,
    recipe: Recipe,
    steps: int = 2,
    guidance_scale: float = 1.0,
    residency: str = "resident",
) -> Recording:
    """What one request is seen to need. Raises: whatever a tensor on the wrong side, or a value read back, raises."""
    memory = Memory(DEVICE.type)
    watcher = _Watcher(memory)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = replace(hollow_files.write(recipe, folder), max_tokens=10**9)
        picture = folder / "image.png"
        Image.linear_gradient("L").convert("RGB").resize((size.width, size.height)).save(picture, compress_level=1)
        asked = request(size=size, frames=frames, steps=steps, guidance_scale=guidance_scale, image=picture)
        plan = make_plan(asked, chosen)
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with _reading_hollow_files(fake), memory, Device(watcher.waits, loading=fake):
            pipeline = load(chosen, models=folder, device=DEVICE.type, dtype="bfloat16", residency=residency)
        watcher.loaded(pipeline)
        with fake, memory, Waits(watcher.waits), Device(watcher.waits):
            for progress in generate(pipeline, asked, plan, output=folder / "out.mp4"):
                if progress.stage in PHASES and progress.message is None:
                    watcher.ended(PHASES[progress.stage])
            watcher.seen.left = memory.live
        with av.open(folder / "out.mp4") as clip:
            watcher.seen.frames = sum(1 for _ in clip.demux(video=0)) - 1
            watcher.seen.has_sound = bool(clip.streams.audio)
    return watcher.seen


def main() -> None:
    """Prints the recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1280x704")
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--residency", default="resident")
    args = parser.parse_args()
    seen = record(
        size=Size(*map(int, args.size.split("x"))),
        frames=args.frames,
        steps=args.steps,
        recipe=load_recipe(args.recipe),
        guidance_scale=args.guidance_scale,
        residency=args.residency,
    )
    print(f"{args.size}, {args.frames} frames, {args.steps} steps, {args.residency}: {seen.frames} frames out")
    for name, size in seen.weights.items():
        print(f"  weights  {name:12} {size:>15,}")
    for name, size in seen.peaks.items():
        print(f"  phase    {name:12} {size:>15,}  waits: {', '.join(seen.waits[name]) or 'none'}")


if __name__ == "__main__":
    main()
