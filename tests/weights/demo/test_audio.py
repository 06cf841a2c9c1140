import pytest
import torch

from weights.demo import motion
from weights.demo.audio import MEAN, STD, build_audio_vae, build_vocoder


@pytest.fixture(scope="module")
def sound():
    vae, vocoder = build_audio_vae(), build_vocoder()

    @torch.no_grad()
    def sound(tokens):
        raw = (tokens[None] * vae.latents_std + vae.latents_mean).unflatten(2, (8, 16)).permute(0, 2, 1, 3)
        return vocoder(vae.decode(raw).sample)[0]

    return sound


def pitch(waveform):
    """Centre of the spectrum in Hz."""
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    hertz = torch.arange(len(spectrum)) * 48000 / len(waveform)
    return ((spectrum * hertz).sum() / spectrum.sum()).item()


@pytest.mark.parametrize("name", motion.MOTIONS)
def test_every_motion_is_heard_and_does_not_clip(sound, name):
    waveform = sound(motion.audio_latents(name, 26))
    assert waveform.shape == (2, (4 * 26 - 3) * 480)
    assert 0.05 < waveform.pow(2).mean().sqrt().item() < 0.5
    assert waveform.abs().max().item() < 0.99


def test_silence_is_silent(sound):
    assert sound(torch.full((26, 128), motion.SILENCE)).abs().max().item() < 1e-3


@pytest.mark.parametrize(("name", "rises"), [("pan right", True), ("tilt up", True), ("pan left", False)])
def test_the_tone_goes_where_the_motion_says(sound, name, rises):
    waveform = sound(motion.audio_latents(name, 50))[0]
    start, end = pitch(waveform[2000:9680]), pitch(waveform[-9680:-2000])
    assert (end > 1.2 * start) if rises else (start > 1.2 * end)


def test_a_pan_leans_to_its_side(sound):
    left, right = sound(motion.audio_latents("pan left", 50))[:, -9600:].pow(2).mean(1)
    assert left > right


@torch.no_grad()
def test_the_encoder_finds_the_levels_of_the_bands():
    vae = build_audio_vae()
    mel = torch.full((1, 2, 101, 64), MEAN)
    mel[:, 1] += STD
    tokens = vae.encode(mel).latent_dist.mode().permute(0, 2, 1, 3).flatten(2)
    normalised = (tokens - vae.latents_mean) / vae.latents_std
    inner = normalised.unflatten(2, (8, 16))[0, 2:, :2, 1:-1]
    assert torch.allclose(inner[:, 0], torch.zeros(()), atol=0.02)
    assert torch.allclose(inner[:, 1], torch.ones(()), atol=0.02)
