import pytest
import torch

from weights.demo import scenes, train_transformer
from weights.demo.position_head import add_position_head, recognisable


@pytest.fixture(scope="module")
def net():
    """A transformer that was never trained, with the head added."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    net = train_transformer.Velocity(train_transformer.build())
    pictures = scenes.bank(4, seed=1)
    grids = [(9, 6, 6), (9, 8, 8), (9, 6, 10), (17, 6, 6)]

    def forwards():
        for frames, height, width in grids:
            shape = train_transformer.Shape(frames, height, width, 6, 1)
            yield lambda shape=shape: recognisable(*forward(net, pictures, shape, rng))

    add_position_head(net.model, forwards())
    return net


def forward(net, pictures, shape, rng):
    """One step from pure noise behind a clean first frame; gives the noisy tokens and their grid."""
    batch = train_transformer.sample_batch(pictures, shape, rng)
    mask = torch.ones(batch.video.shape[:2])
    mask[:, : shape.height * shape.width] = 0
    noisy = torch.where(mask[..., None] > 0, torch.randn(batch.video.shape, generator=rng), batch.video)
    codes = tuple(code[batch.classes] for code in train_transformer.context_codes())
    audio = torch.randn(batch.audio.shape, generator=rng)
    net(noisy, audio, codes, sigma=torch.ones(shape.batch), mask=mask, grid=batch.grid)
    return noisy, batch.grid


@pytest.mark.parametrize(("height", "width"), [(5, 5), (8, 8), (8, 12), (9, 16)])
def test_what_the_head_writes_rises_with_the_place_at_every_size(net, height, width):
    written = []
    hook = (
        net.model.transformer_blocks[0]
        .attn1.to_out[0]
        .register_forward_pre_hook(lambda _, args: written.append(args[0].detach()))
    )
    shape = train_transformer.Shape(17, height, width, 6, 1)
    with torch.no_grad():
        forward(net, scenes.bank(4, seed=2), shape, torch.Generator().manual_seed(5))
    hook.remove()
    places = written[0].unflatten(1, (3, height, width))[:, 1:]
    columns = torch.linspace(-1, 1, width).expand(2, height, width)
    rows = torch.linspace(-1, 1, height)[:, None].expand(2, height, width)
    for axis, place in enumerate((columns, rows)):
        told = [torch.corrcoef(torch.stack([clip[..., axis].flatten(), place.flatten()]))[0, 1] for clip in places]
        assert sum(told) / len(told) > 0.7
