"""One call of the transformer, as a stage's sampler asks for it: every pass, and the guided prediction of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.guidance import guided
from pipeline.plan import Guidance, Pass, Stage
from pipeline.recipe import Semantics
from pipeline.trace import Record
from pipeline.transformer import Context, Geometry, Omission, Runs, modulation, velocity

State = tuple[Tensor, Tensor]
"""Tokens of video, tokens of audio. Shapes: [1, N, 128], [1, A, 128], float32."""
NAMES: Final = ("video", "audio")


@dataclass(frozen=True)
class Stream:
    """What holds for one of the two streams throughout a stage.

    Shapes: `clean` [1, N, 128], `mask` [1, N, 1]: 1 where to generate, 0 where to keep `clean`.
    """

    clean: Tensor
    mask: Tensor
    runs: Runs
    guidance: Guidance

    def blended(self, tokens: Tensor) -> Tensor:
        """`tokens` as far as they are to be generated, `clean` for the rest."""
        return torch.lerp(self.clean.to(tokens), tokens, self.mask.to(tokens))


@dataclass(frozen=True)
class Prediction:
    """Denoised tokens of one stream: the guided ones, blended with the clean ones; those of the negative prompt."""

    denoised: Tensor
    unconditional: Tensor


@dataclass(frozen=True)
class Predictor:
    """A stage's transformer calls.

    official: the state is what the transformer sees, and a pinned token's prediction follows from its own timestep.
    comfy: the state is never blended with the clean tokens, only what the transformer sees is; every token's
    prediction follows from the scalar sigma.
    Source: golden conventions, sections 6 and 7 (ComfyUI 0.30.0: KSamplerX0Inpaint, CONST).
    """

    model: Any
    geometry: Geometry
    passes: tuple[Pass, ...]
    context: Context
    omissions: tuple[Omission, ...]
    streams: tuple[Stream, Stream]
    semantics: Semantics
    record: Record
    passes_per_call: int

    def __call__(self, state: State, *, sigma: float, call: int) -> tuple[Prediction, Prediction]:
        """Predictions of both streams at `sigma`; `call` counts from 0 and names what is recorded."""
        seen = [
            tokens if self.semantics == "official" else stream.blended(tokens)
            for tokens, stream in zip(state, self.streams, strict=True)
        ]
        velocities = self._velocities(seen, sigma=sigma)
        self.record(f"call{call:02d}.sigma", torch.tensor([sigma]))
        video, audio = (
            self._prediction(tokens, v.float(), stream, sigma=sigma, name=f"call{call:02d}.{name}_")
            for tokens, v, stream, name in zip(seen, velocities, self.streams, NAMES, strict=True)
        )
        return video, audio

    def _velocities(self, seen: list[Tensor], *, sigma: float) -> State:
        """Velocities of every pass, a row for each, as many rows at a time as go into one call."""
        weight = self.model.proj_in.weight
        video, audio = (stream.runs for stream in self.streams)
        rows = modulation(self.model, sigma, video=video, audio=audio, dtype=weight.dtype)
        made = [
            velocity(
                self.model,
                *(tokens.to(weight.dtype).expand(len(self.passes[part]), -1, -1) for tokens in seen),
                context=Context(self.context.video[part], self.context.audio[part]),
                geometry=self.geometry,
                modulation=rows,
                omissions=self.omissions[part],
            )
            for part in _parts(len(self.passes), self.passes_per_call)
        ]
        if len(made) == 1:
            return made[0]
        return torch.cat([v for v, _ in made]), torch.cat([a for _, a in made])

    def _prediction(self, seen: Tensor, v: Tensor, stream: Stream, *, sigma: float, name: str) -> Prediction:
        step = sigma if self.semantics == "comfy" else stream.mask * sigma
        passes = dict(zip(self.passes, (seen - v * step).split(1), strict=True))
        pushed = guided(passes, stream.guidance)
        self.record(f"{name}in", seen)
        self.record(f"{name}x0", pushed)
        for key, value in passes.items():
            self.record(name + key, value)
        return Prediction(denoised=stream.blended(pushed), unconditional=passes.get("uncond", pushed))

    def kept(self, state: State) -> State:
        """What a step that adds noise leaves of `state`: under official semantics blended with the clean tokens."""
        if self.semantics == "comfy":
            return state
        video, audio = (stream.blended(tokens) for tokens, stream in zip(state, self.streams, strict=True))
        return video, audio


def _parts(rows: int, at_once: int) -> Iterator[slice]:
    return (slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once))


def omissions(stage: Stage) -> tuple[Omission, ...]:
    """What each pass of `stage` leaves out.

    A stream that is not pushed away from the pass without self-attention keeps its own in it.
    Source: Lightricks/LTX-2 @400fd31, ltx_pipelines/utils/denoisers.py.
    """
    video, audio = (g.stg_blocks if g.stg else () for g in (stage.video, stage.audio))
    left_out: dict[Pass, Omission] = {
        "cond": Omission(),
        "uncond": Omission(),
        "ptb": Omission(video_blocks=video, audio_blocks=audio),
        "mod": Omission(exchange=True),
    }
    return tuple(left_out[name] for name in stage.passes)
