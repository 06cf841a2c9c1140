"""Generations whose parameters no golden file has, against a second implementation of the golden conventions.

`tests/golden/reference.py` is that implementation; the golden files themselves hold it too, by hand.
"""

from dataclasses import replace

import pytest
import torch

from pipeline.conditioning import covering, cut_first
from pipeline.types import Size
from tests.golden import cases, reference, reference_models, run

PLAIN = {
    "prompt": "a woman stands still amid a busy neon lit street",
    "negative_prompt": "color distortion, overexposure, static",
    "frames": 9,
    "fps": 24.0,
    "height": 64,
    "width": 64,
    "sampler": "euler",
    "steps": 2,
    "strength": 0.7,
    "crf": 18,
    "lora": 0.5,
    "seed": 44,
    "num_model_calls": {"stage": 2},
}
GUIDED = {
    "video_guider": {
        "cfg_scale": 3.0,
        "stg_scale": 1.0,
        "stg_blocks": [1],
        "modality_scale": 3.0,
        "rescale_scale": 0.9,
    },
    "audio_guider": {
        "cfg_scale": 7.0,
        "stg_scale": 1.0,
        "stg_blocks": [1],
        "modality_scale": 3.0,
        "rescale_scale": 0.7,
    },
}
ONE_SIDED = {
    "video_guider": {"cfg_scale": 1.0, "stg_scale": 1.5, "stg_blocks": [0]},
    "audio_guider": {"cfg_scale": 4.5, "modality_scale": 0.5},
}
CFG_PP = {"sampler": "cfg_pp", "eta": 1.0, "cfg": 1.0, "semantics": "comfy"}
RES_2S = {"sampler": "res_2s", "steps": 3, "schedule_tokens": 8160, "num_model_calls": {"stage": 7}}
TWO_STAGES = {"height": 128, "width": 64, "steps": 2, "num_model_calls": {"stage1.": 2, "stage2.": 3}}
NO_IMAGE = {"strength": None, "crf": None}

QUICK = {
    "res_2s with short steps, which move the anchor": RES_2S | GUIDED | {"fps": 23.976, "strength": 0.35},
    "res_2s under comfy": RES_2S | {"cfg": 2.0, "semantics": "comfy", "crf": 0, "height": 96, "width": 32},
    "guidance of one stream by self-attention, of the other by modality": ONE_SIDED,
    "half the fresh noise, a LoRA taken away": CFG_PP | {"eta": 0.5, "cfg": 2.0, "lora": -0.3},
    "guidance in the first of two stages": TWO_STAGES | GUIDED,
    "two stages under comfy": TWO_STAGES | CFG_PP | {"strength": 0.5},
}
OTHERS = {
    "longer than the positions reach": NO_IMAGE | {"frames": 49, "fps": 2.0, "height": 32, "width": 32},
    "res_2s on the distilled sigmas": RES_2S
    | {"steps": None, "schedule_tokens": None, "num_model_calls": {"stage": 17}},
    "res_2s from the prompt alone": RES_2S | NO_IMAGE | {"cfg": 3.0},
    "res_2s, 15 steps": RES_2S | GUIDED | {"steps": 15, "num_model_calls": {"stage": 31}},
    "res_2s in two stages": RES_2S | GUIDED | TWO_STAGES | {"num_model_calls": {"stage1.": 5, "stage2.": 7}},
    "euler under comfy": {"semantics": "comfy", "cfg": 2.5},
    "euler by all guidance": GUIDED,
    "euler by self-attention of several blocks": {
        "video_guider": {"cfg_scale": 2.2, "stg_scale": 1.5, "stg_blocks": [0, 1], "rescale_scale": 0.3},
        "audio_guider": {"cfg_scale": 3.7, "stg_scale": 0.5, "stg_blocks": [0], "rescale_scale": 1.0},
    },
    "rescaling alone": {"video_guider": {"rescale_scale": 0.5}, "audio_guider": {"cfg_scale": 0.5}},
    "cfg_pp by all guidance": {key: value for key, value in CFG_PP.items() if key != "cfg"} | GUIDED,
    "no fresh noise": CFG_PP | {"eta": 0.0, "cfg": 0.0, "semantics": "official"},
    "30 steps of a long clip": CFG_PP | {"steps": 30, "schedule_tokens": 53_680, "num_model_calls": {"stage": 30}},
    "40 steps, the first of which float32 cannot tell": CFG_PP
    | {"steps": 40, "schedule_tokens": 14_080, "num_model_calls": {"stage": 40}, "semantics": "official"},
    "the image not kept": CFG_PP | {"strength": 0.0},
    "the image kept whole": CFG_PP | {"strength": 1.0},
    "the image kept whole, official": CFG_PP | {"strength": 1.0, "semantics": "official"},
    "a strength that no binary fraction is": {"strength": 0.65},
    "a wide picture, hardly left": {"crf": 51, "height": 32, "width": 160},
    "a tall picture, as it is": {"crf": 0, "height": 160, "width": 64},
    "one frame": {"frames": 1},
    "25 frames": {"frames": 25, "lora": 1.0},
    "one frame a second": {"fps": 1.0},
    "half a sound token over": {"fps": 50.0, "frames": 17},
    "60 frames a second": {"fps": 60.0, "frames": 33},
    "a long prompt, and an empty one": {"prompt": "word " * 400, "negative_prompt": "", "cfg": 3.0},
    "words of many kinds": {"prompt": " \u2581<bos> \u00e9\u6f22\U0001f98a\n\n<start_of_image> x", "cfg": 2.0},
    "two stages from the prompt alone": TWO_STAGES | NO_IMAGE,
    "two stages on the distilled sigmas": TWO_STAGES
    | {"steps": None, "num_model_calls": {"stage1.": 8, "stage2.": 3}},
    "two stages of cfg_pp": TWO_STAGES | CFG_PP | {"semantics": "official"},
    "two stages of euler under comfy": TWO_STAGES | {"semantics": "comfy"},
}
PIXELS = 3e-6
"""Allowed between two ways to compute a bilinear filter, by hand in double precision and by torch in single."""


@pytest.fixture(scope="module")
def models(tiny):
    """The product's models and the second implementation's, by LoRA strength; kept, since most cases share one."""
    kept = {}

    def of(case):
        (strength,) = {stage.lora_strength for stage in case.recipe.stages}
        if strength not in kept:
            both = replace(case, recipe=replace(case.recipe, upsampler=cases.UPSAMPLER))
            kept[strength] = (
                cases.load(both, models=tiny, dtype="float32"),
                reference_models.models(tiny, lora=strength),
            )
        ours, others = kept[strength]
        return replace(ours, recipe=case.recipe), others

    return of


def distances(expected, found):
    """Relative distances that are too large, by tensor."""
    assert expected.keys() == found.keys()
    limits = {name: max(run.tolerance(name), PIXELS if "image_pixels" in name else 0) for name in expected}
    rows = {name: distance(expected[name], found[name]) for name in expected}
    return {name: off for name, off in rows.items() if not off <= limits[name]}


def distance(expected, found):
    assert expected.shape == found.shape
    expected, found = expected.double(), found.double()
    return ((expected - found).norm() / expected.norm().clamp(min=1e-12)).item()


@pytest.mark.parametrize(
    "changes",
    [
        *(pytest.param(changes, id=name) for name, changes in QUICK.items()),
        *(pytest.param(changes, id=name, marks=pytest.mark.slow) for name, changes in OTHERS.items()),
    ],
)
def test_both_make_the_same_of_it(changes, models, tiny, tmp_path):
    params = {key: value for key, value in (PLAIN | changes).items() if value is not None}
    image = tiny / "image.png" if "strength" in params else None
    case = cases.generation(params, image=image)
    ours, others = models(case)
    found = cases.run(case, ours, output=tmp_path / "out.mp4")
    expected = reference.tensors(params, others, image=image)
    assert distances(expected, found) == {}


@pytest.mark.parametrize("fit", ["official", "comfy"])
@pytest.mark.parametrize("size", [Size(64, 32), Size(32, 64), Size(160, 96), Size(96, 96), Size(100, 77)])
@pytest.mark.parametrize("sides", [(77, 101), (150, 200), (31, 500), (500, 17)])
def test_both_make_a_picture_fill_a_size_alike(sides, size, fit):
    rgb = torch.randint(0, 256, (*sides, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    found = (covering if fit == "official" else cut_first)(rgb, size=size)
    expected = reference_models.filled(rgb, height=size.height, width=size.width, fit=fit)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
