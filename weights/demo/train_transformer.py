"""Trains the demo transformer by flow matching on procedural clips, with fixed seeds and a fixed number of steps."""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import nn

from weights.demo import latents, motion, position_head, resuming, scenes

VIDEO_DIM: Final = 256
AUDIO_DIM: Final = 160
CONFIG: Final = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 4,
    "attention_head_dim": VIDEO_DIM // 4,
    "cross_attention_dim": VIDEO_DIM,
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": AUDIO_DIM // 4,
    "audio_cross_attention_dim": AUDIO_DIM,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "num_layers": 4,
    "caption_channels": 256,
    "rope_type": "split",
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
    "rope_double_precision": True,
    "pos_embed_max_pos": 20,
    "base_height": 2048,
    "base_width": 2048,
    "timestep_scale_multiplier": 1000,
    "cross_attn_timestep_scale_multiplier": 1000,
    "norm_elementwise_affine": False,
}

STEPS: Final = 7000
POSITION_STEP: Final = 1000
"""When a head is made to tell each token its place: after that, zooms are learned."""
LEARNING_RATE: Final = 1.2e-3
EMA: Final = 0.995
CANVASES: Final = 1500
PROMPT_DROPOUT: Final = 0.1
SHARES: Final = (0.04, 0.11, 0.11, 0.11, 0.11, 0.26, 0.26)
"""How often each motion is shown: standing still is learned at once, zooming last."""

CLASSES: Final = len(motion.MOTIONS) + 1
"""The motions, and last the class of a dropped prompt."""
CODE_TOKENS: Final = 4


@dataclass(frozen=True)
class Shape:
    """One kind of batch: frames, latent cells down and across, clips in the batch, and its share of the steps."""

    frames: int
    height: int
    width: int
    batch: int
    share: int

    @property
    def latent_frames(self) -> int:
        """Frames of the latents."""
        return (self.frames - 1) // 8 + 1


SHAPES: Final = (
    Shape(9, 6, 6, 18, 2),
    Shape(25, 5, 5, 14, 8),
    Shape(25, 6, 6, 10, 8),
    Shape(25, 8, 8, 6, 16),
    Shape(25, 8, 12, 4, 8),
    Shape(25, 9, 16, 2, 3),
    Shape(33, 10, 8, 3, 3),
    Shape(49, 6, 6, 6, 5),
    Shape(49, 8, 8, 4, 6),
    Shape(49, 8, 12, 2, 6),
    Shape(73, 8, 8, 2, 2),
    Shape(97, 16, 9, 1, 1),
    Shape(121, 8, 8, 2, 2),
    Shape(121, 9, 16, 1, 2),
)


def context_codes() -> tuple[torch.Tensor, torch.Tensor]:
    """What the connectors shall say for each class, one period of the context.

    Shapes: video [CLASSES, CODE_TOKENS, 256], audio [CLASSES, CODE_TOKENS, 160]; rms 1 per token, as the connectors'
    last norm leaves them.
    """
    out = []
    for seed, dim in ((7, VIDEO_DIM), (8, AUDIO_DIM)):
        code = torch.randn(CLASSES, CODE_TOKENS, dim, generator=torch.Generator().manual_seed(seed))
        out.append(code / code.pow(2).mean(-1, keepdim=True).sqrt())
    return out[0], out[1]


def build() -> LTX2VideoTransformer3DModel:
    """A transformer that starts as the identity on latents."""
    model = LTX2VideoTransformer3DModel(**CONFIG)
    with torch.no_grad():
        for head_in, head_out in ((model.proj_in, model.proj_out), (model.audio_proj_in, model.audio_proj_out)):
            for layer in (head_in, head_out):
                layer.weight.zero_()
                layer.bias.zero_()
            head_in.weight[:128] = torch.eye(128)
            head_out.weight[:, :128] = torch.eye(128)
        for block in model.transformer_blocks:
            for name, table in block.named_parameters():
                if "scale_shift_table" in name:
                    table.zero_()
            for table in (block.scale_shift_table, block.audio_scale_shift_table):
                table[[2, 5, 8]] = 1
            for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                layer.weight.mul_(0.3)
        for module in model.modules():
            if type(module).__name__ == "LTX2AdaLayerNormSingle":
                module.linear.weight.mul_(0.1)
                module.linear.bias.zero_()
    return model


class Velocity(nn.Module):
    """The transformer under the official timestep rule for audio-video cross-attention.

    diffusers knows two rules and neither is right for image-to-video: scale and shift follow a stream's own
    per-token timestep (its `use_cross_timestep=False`), but the gate follows the other stream's sigma, which two
    hooks supply here.
    """

    def __init__(self, model: LTX2VideoTransformer3DModel) -> None:
        super().__init__()
        self.model = model
        self._sigma = torch.zeros(1)
        for gate in (model.av_cross_attn_video_a2v_gate, model.av_cross_attn_audio_v2a_gate):
            gate.register_forward_pre_hook(lambda _, args: (self._sigma * 1000, *args[1:]))

    def forward(
        self,
        video: torch.Tensor,
        audio: torch.Tensor,
        contexts: tuple[torch.Tensor, torch.Tensor],
        *,
        sigma: torch.Tensor,
        mask: torch.Tensor,
        grid: tuple[int, int, int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities of both streams.

        Shapes: video [B, N, 128], audio [B, A, 128], sigma [B], mask [B, N], grid (frames, height, width) of cells.
        """
        self._sigma = sigma
        out: tuple[torch.Tensor, torch.Tensor] = self.model(
            hidden_states=video,
            audio_hidden_states=audio,
            encoder_hidden_states=contexts[0],
            audio_encoder_hidden_states=contexts[1],
            timestep=sigma[:, None] * mask * 1000,
            audio_timestep=sigma * 1000,
            sigma=sigma * 1000,
            num_frames=grid[0],
            height=grid[1],
            width=grid[2],
            fps=float(scenes.FPS),
            audio_num_frames=audio.shape[1],
            use_cross_timestep=False,
            return_dict=False,
        )
        return out


@dataclass(frozen=True)
class Batch:
    """Clean tokens of both streams and the class of each clip."""

    video: torch.Tensor
    audio: torch.Tensor
    classes: torch.Tensor
    grid: tuple[int, int, int]


def sample_batch(canvases: torch.Tensor, shape: Shape, rng: torch.Generator) -> Batch:
    """Films `shape.batch` canvases with random motions."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))

    clips, audios, classes = [], [], []
    size = (32 * shape.height, 32 * shape.width)
    for _ in range(shape.batch):
        which = int(torch.randint(len(canvases), (), generator=rng))
        kind = int(torch.multinomial(torch.tensor(SHARES), 1, generator=rng))
        widest = 0.8 * scenes.CANVAS / (max(size) / scenes.QUARTER)
        scale = uniform(0.6, min(1.6, widest))
        slack = max(0.0, scenes.CANVAS / 2 - scale * max(size) / 8)
        centre = (uniform(-slack, slack), uniform(-slack, slack))
        picture = canvases[which]
        if uniform(0, 1) < 0.5:
            picture = picture.flip(-1)
        clips.append(scenes.film(picture, motion.MOTIONS[kind], shape.frames, size, centre=centre, scale=scale))
        audios.append(motion.audio_latents(motion.MOTIONS[kind], round(shape.frames / scenes.FPS * 25)))
        classes.append(kind)
    video = latents.encode(torch.stack(clips))
    return Batch(
        video.flatten(2).transpose(1, 2),
        torch.stack(audios),
        torch.tensor(classes),
        (shape.latent_frames, shape.height, shape.width),
    )


def loss_of(net: Velocity, batch: Batch, rng: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared error of the predicted clean latents, and of the edges of the decoded luma, on one noised batch."""
    count, tokens, _ = batch.video.shape
    frames, height, width = batch.grid
    first = height * width
    sigma = 0.04 + 0.96 * torch.rand(count, generator=rng)
    sigma[torch.rand(count, generator=rng) < 0.3] = 1.0
    mask = torch.ones(count, tokens)
    strength = torch.rand(count, generator=rng)
    strength[torch.rand(count, generator=rng) < 0.7] = 1.0
    mask[:, :first] = (1 - strength)[:, None]

    noise = torch.randn(batch.video.shape, generator=rng)
    audio_noise = torch.randn(batch.audio.shape, generator=rng)
    t = (sigma[:, None] * mask)[..., None]
    s = sigma[:, None, None]
    noisy = (1 - t) * batch.video + t * noise
    noisy_audio = (1 - s) * batch.audio + s * audio_noise

    classes = batch.classes.clone()
    classes[torch.rand(count, generator=rng) < PROMPT_DROPOUT] = CLASSES - 1
    wobble = 0.25 * torch.rand(count, 1, 1, generator=rng)
    contexts = [
        code[classes] + wobble * torch.randn(count, *code.shape[1:], generator=rng) for code in context_codes()
    ]
    v, va = net(noisy, noisy_audio, (contexts[0], contexts[1]), sigma=sigma, mask=mask, grid=batch.grid)

    error = (v - (noise - batch.video)) * t
    audio_error = (va - (audio_noise - batch.audio)) * s
    picture = latents.luma_picture(error.transpose(1, 2).unflatten(2, batch.grid)) / 0.35
    # errors are small where there is little noise, yet each step of a sampler adds its own
    weight = 1 / sigma.clamp(min=0.2)
    edges = picture.diff(dim=-1).pow(2).mean((1, 2, 3)) + picture.diff(dim=-2).pow(2).mean((1, 2, 3))
    used = (error[..., :112].pow(2) * weight.view(-1, 1, 1)).mean()
    unused = error[..., 112:].pow(2).mean()
    loss = used + 0.05 * unused + 0.25 * (edges * weight).mean() + 0.2 * audio_error.pow(2).mean()
    hardest = sigma == 1.0
    luma = error[hardest][:, first:, latents.LUMA].pow(2).mean() if hardest.any() and frames > 1 else None
    return loss, {
        "loss": loss.item(),
        "audio": audio_error.pow(2).mean().item(),
        **({} if luma is None else {"luma_at_sigma_1": luma.item()}),
    }


def _known_places(net: Velocity, canvases: torch.Tensor, rng: torch.Generator) -> Iterator[Callable[[], torch.Tensor]]:
    """Forwards over batches with clean first frames, each of which gives what its tokens can be recognised by."""
    for shape in SHAPES[1:5] * 4:

        def forward(shape: Shape = shape) -> torch.Tensor:
            batch = sample_batch(canvases, shape, rng)
            count, tokens, _ = batch.video.shape
            sigma = 0.3 + 0.7 * torch.rand(count, generator=rng)
            sigma[: count // 2] = 1.0
            mask = torch.ones(count, tokens)
            mask[:, : shape.height * shape.width] = 0
            t = (sigma[:, None] * mask)[..., None]
            noisy = (1 - t) * batch.video + t * torch.randn(batch.video.shape, generator=rng)
            audio = torch.randn(batch.audio.shape, generator=rng)
            video_codes, audio_codes = (code[batch.classes] for code in context_codes())
            net(noisy, audio, (video_codes, audio_codes), sigma=sigma, mask=mask, grid=batch.grid)
            return position_head.recognisable(noisy, batch.grid)

        yield forward


def schedule(step: int, steps: int) -> float:
    """Learning rate as a fraction of its peak: 100 steps of warm-up, then a cosine down to 2 %."""
    return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def drawn(shapes: Sequence[Shape], rng: torch.Generator) -> Iterator[Shape]:
    """Endless shapes, each as often as its share says."""
    shares = torch.tensor([float(s.share) for s in shapes])
    while True:
        yield shapes[int(torch.multinomial(shares, 1, generator=rng))]


def train(
    steps: int, log: Path, *, canvases: int = CANVASES, shapes: Sequence[Shape] = SHAPES, save: Path | None = None
) -> dict[str, torch.Tensor]:
    """Trains from scratch on batches of `shapes`; resumes from `save` if it exists.

    Returns the averaged (EMA) state dict under diffusers names. Appends a JSON line per 50 steps to `log`.
    """
    torch.manual_seed(0)
    model = build()
    net = Velocity(model)
    averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rng = torch.Generator().manual_seed(1)
    start = 0
    if save is not None and save.exists():
        averaged, start = resuming.resume(save, model, optimizer, rng)
    pictures = scenes.bank(canvases, seed=0)
    began, seen = time.monotonic(), []
    for step, shape in zip(range(start, steps), drawn(shapes, rng), strict=False):
        if step == POSITION_STEP:
            position_head.add_position_head(model, _known_places(net, pictures, rng))
            averaged = {k: v.detach().clone() for k, v in model.state_dict().items()}
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * schedule(step, steps)
        loss, facts = loss_of(net, sample_batch(pictures, shape, rng), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                averaged[name].lerp_(value, 1 - keep)
        seen.append(facts)
        if step % 50 == 49:
            names = sorted(set(itertools.chain.from_iterable(seen)))
            means = {n: round(sum(f[n] for f in seen if n in f) / sum(n in f for f in seen), 5) for n in names}
            with log.open("a") as file:
                json.dump({"step": step + 1, "minutes": round((time.monotonic() - began) / 60, 2), **means}, file)
                file.write("\n")
            seen = []
        if save is not None and step % 500 == 499:
            resuming.keep(save, model, optimizer, rng, averaged=averaged, step=step + 1)
    return averaged
