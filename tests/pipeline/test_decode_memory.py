"""What decoding holds at the real size, counted on the meta device: tensors have sizes there, and no memory."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline import decode
from weights import config

CONFIG = Path(__file__).parent.parent / "weights" / "layout" / "ltx-2.3-config.json"


@pytest.fixture(scope="module")
def vae():
    with torch.device("meta"):
        built = config.build("vae", json.loads(CONFIG.read_text()), {})
    for parameter in built.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return built


class Live(TorchDispatchMode):
    """Counts the bytes of every tensor made inside, for as long as it lives."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key):
        self.live -= self._sizes.pop(key)


def peak(vae, *, height, width, frames, latent_frames):
    with Live() as count:
        for _ in decode.decode(
            vae, torch.empty(1, 128, frames, height, width, device="meta"), latent_frames=latent_frames
        ):
            pass
    return count.peak


def test_a_long_clip_takes_no_more_than_a_short_one(vae):
    short, long = (peak(vae, height=4, width=6, frames=f, latent_frames=2) for f in (16, 30))
    assert long < short * 1.02


@pytest.mark.parametrize(("latent_frames", "gib"), [(2, 2.8), (4, 4.5)])
def test_decoding_121_frames_of_720p_takes_so_much(vae, latent_frames, gib):
    found = peak(vae, height=22, width=40, frames=16, latent_frames=latent_frames) / 2**30
    assert 0.9 * gib < found < gib
