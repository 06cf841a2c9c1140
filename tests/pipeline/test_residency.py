import copy
import itertools

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from pipeline import loading, memory, residency, text
from pipeline.device import work_on
from pipeline.errors import OutOfMemoryError
from weights.checkpoint import Checkpoint, load_component
from weights.text_encoder import load_text_encoder

CPU = torch.device("cpu")


class Wide(nn.Module):
    """Large enough to wait on the host."""

    def __init__(self, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(512, 512)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=rng) / 22
        self.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.linear(x)


@pytest.fixture
def blocks():
    return [Wide(seed) for seed in range(5)]


def through(blocks, x):
    for block in blocks:
        x = block(x)
    return x


@torch.inference_mode()
def test_streamed_blocks_compute_what_they_would_in_place(blocks):
    x = torch.randn(3, 512)
    expected = through(blocks, x)
    streamed = residency.Streamed(blocks, device=CPU)
    streamed.open()
    for _ in range(2):
        assert torch.equal(through(streamed, x), expected)


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_copies_and_computing_keep_their_order(blocks):
    x = torch.randn(3, 512)
    expected = through(blocks, x)
    streamed = residency.Streamed(blocks, device=torch.device("cuda"))
    streamed.open()
    for _ in range(20):
        found = through(streamed, x.cuda()).cpu()
        assert ((found - expected).norm() / expected.norm()).item() < 1e-2


@torch.inference_mode()
def test_blocks_that_wait_hold_the_memory_of_two(blocks):
    streamed = residency.Streamed(blocks, device=CPU)
    streamed.open()
    held = {block.linear.weight.untyped_storage().data_ptr() for block in streamed.children()}
    assert len(held) == 2
    streamed.close()
    assert len({block.linear.weight.untyped_storage().data_ptr() for block in streamed.children()}) == 5


@torch.inference_mode()
def test_the_next_block_is_on_its_way_before_one_computes(blocks):
    streamed = residency.Streamed(blocks, device=CPU)
    expected = [block.linear.weight.clone() for block in blocks]
    streamed.open()
    walk = iter(streamed)
    next(walk)
    second = list(streamed.children())[1]
    assert torch.equal(second.linear.weight, expected[1])


def test_only_what_waits_is_pinned_and_its_original_is_freed_before_the_next(blocks):
    originals = [StorageWeakRef(block.linear.weight.untyped_storage()) for block in blocks]
    left = []

    def pin(tensor):
        left.append(sum(not original.expired() for original in originals))
        return tensor.clone()

    residency.Streamed(blocks, device=CPU, pin=pin)
    assert left == [5, 4, 3, 2, 1]
    assert all(original.expired() for original in originals)


def test_tied_weights_are_pinned_once_and_stay_tied():
    whole = nn.Module()
    whole.embed, whole.head = nn.Embedding(512, 512), nn.Linear(512, 512, bias=False)
    whole.head.weight = whole.embed.weight
    whole.layers = nn.ModuleList([Wide(0)])
    pinned = []
    visitor = residency.Visitor(
        whole,
        blocks=("layers",),
        left=("head",),
        device=CPU,
        pin=lambda tensor: pinned.append(tensor.shape) or tensor.clone(),
    )
    assert len(pinned) == 2
    assert whole.head.weight.data_ptr() == whole.embed.weight.data_ptr()
    with visitor.whole():
        assert whole.head.weight.data_ptr() == whole.embed.weight.data_ptr()


def test_a_whole_slice_is_the_list_itself(blocks):
    streamed = residency.Streamed(blocks, device=CPU)
    assert streamed[:5] is streamed
    assert streamed[2] is list(streamed.children())[2]


@pytest.fixture
def reading(tiny):
    checkpoint = Checkpoint.open(tiny / "ltx-2.3-tiny.safetensors")
    connectors = load_component(checkpoint, "connectors", dtype=torch.float32, device="cpu")
    return load_text_encoder(tiny / "gemma", dtype=torch.float32, device="cpu"), connectors


@torch.inference_mode()
def test_a_text_encoder_and_connectors_that_visit_read_as_those_that_stay(reading):
    encoder, connectors = reading
    expected = text.encode("a red kite", text_encoder=encoder, connectors=connectors)
    gemma = residency.visiting_text_encoder(encoder.model, device=CPU)
    visiting = residency.visiting_connectors(connectors, device=CPU)
    for _ in range(2):
        with gemma.by_turns():
            states = text.read("a red kite", text_encoder=encoder)
        with visiting.by_turns():
            found = text.context(states, connectors=connectors)
        assert torch.equal(found.video, expected.video)
        assert torch.equal(found.audio, expected.audio)


def devices(module):
    return {place.device.type for place in (*module.parameters(), *module.buffers())}


def test_while_gemma_reads_its_words_and_its_eyes_stay_on_the_host(reading):
    """The device is `meta` here: what is on it has no memory, and computes with nothing from the host."""
    model = reading[0].model
    inner = model.model.language_model
    visitor = residency.visiting_text_encoder(model, device=torch.device("meta"))
    with visitor.by_turns():
        assert devices(inner.layers) | devices(inner.norm) | devices(inner.rotary_emb) == {"meta"}
        left = (inner.embed_tokens, model.model.vision_tower, model.model.multi_modal_projector, model.lm_head)
        assert {kind for part in left for kind in devices(part)} == {"cpu"}


def test_to_write_all_of_gemma_comes_over_and_others_make_room(reading):
    model, connectors = reading[0].model, reading[1]
    visitor = residency.visiting_text_encoder(model, device=torch.device("meta"))
    with visitor.whole(instead_of=[connectors]):
        assert devices(model) == {"meta"}
        assert devices(connectors) == {"cpu"}
    assert devices(connectors) == {"meta"}
    assert devices(model.model.vision_tower) == {"cpu"}


@pytest.mark.parametrize("writer", ["visitor", "alone"])
def test_loading_has_the_others_wait_only_where_gemma_writes_alone(tiny, writer):
    evicted = memory.Need(memory.named("evict-text"), {}, {}, passes_per_call=1, writer=writer)
    other = Wide(0)
    encoder, _, writing = loading._text_encoder(
        tiny / "gemma", dtype=torch.float32, place=torch.device("meta"), need=evicted, others=[other]
    )
    with writing():
        assert devices(encoder.model) == {"meta"}
        assert devices(other) == {"cpu"}
    assert devices(other) == ({"meta"} if writer == "alone" else {"cpu"})


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_a_visit_reads_as_on_the_host_and_others_come_back_as_they_were(reading):
    encoder, _ = reading
    states = text.read("a red kite", text_encoder=encoder)
    device, other = work_on("cuda"), Wide(0).cuda()
    weight = other.linear.weight.clone()
    visitor = residency.visiting_text_encoder(encoder.model, device=device)
    with visitor.by_turns():
        by_turns = text.read("a red kite", text_encoder=encoder)
    with visitor.whole(instead_of=[other]):
        whole = text.read("a red kite", text_encoder=encoder)
    assert torch.equal(other.linear.weight, weight)
    for found in (by_turns, whole):
        distance = (torch.stack(found).cpu() - torch.stack(states)).norm() / torch.stack(states).norm()
        assert distance.item() < 1e-2


def standing(module):
    """Where each of its tensors is."""
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: (tensor.device.type, tensor.data_ptr()) for name, tensor in named}


@pytest.mark.parametrize("way", ["by_turns", "whole"])
def test_a_visit_that_ends_in_an_error_is_over(reading, way, monkeypatch):
    monkeypatch.setattr(residency, "LARGE", 1_000)  # so that the layers of a tiny Gemma wait too
    inner = reading[0].model.model.language_model
    visitor = residency.visiting_text_encoder(reading[0].model, device=torch.device("meta"))
    before, during = standing(reading[0].model), {}

    def visit():
        with getattr(visitor, way)():
            during.update(standing(reading[0].model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        visit()
    moved = [name for name, place in during.items() if place != before[name]]
    assert any(".layers." in name for name in moved)
    assert "model.language_model.norm.weight" in moved
    assert standing(reading[0].model) == before
    assert not inner.layers._slots


class OutOfMemoryAt(TorchFunctionMode):
    """No memory for the tensor that is the nth to be copied or made, or for any from there on."""

    def __init__(self, nth, *, ever_after=False):
        super().__init__()
        self.left, self.ever_after = nth, ever_after

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in {torch.Tensor.to, torch.empty}:
            self.left -= 1
            if self.left == -1 or (self.left < 0 and self.ever_after):
                raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("way", "copies"), [("by_turns", 5), ("whole", 5)])
def test_a_visit_that_finds_no_room_half_way_leaves_everything_where_it_stood(way, copies):
    """By turns: a norm of one tensor, and two slots for each of two lists. Whole: that norm and four large weights."""
    model = nn.Module()
    model.norm = nn.RMSNorm(8)
    model.first, model.second = (nn.ModuleList([Wide(0), Wide(1)]) for _ in range(2))
    visitor = residency.Visitor(model, blocks=("first", "second"), device=torch.device("meta"))
    before = standing(model)
    for nth in itertools.count():
        try:
            with OutOfMemoryAt(nth), getattr(visitor, way)():
                break
        except torch.OutOfMemoryError:
            assert standing(model) == before
            assert not model.first._slots
            assert not model.second._slots
    assert nth == copies
    assert standing(model) == before


def test_others_that_make_room_come_back_if_there_was_none_even_so(reading):
    model, connectors = reading[0].model, reading[1]
    visitor = residency.visiting_text_encoder(model, device=torch.device("meta"))
    before = standing(model)
    first = Wide(0)
    for place, nth in (
        ("the first other", 1),
        ("the model", len([*first.parameters(), *connectors.parameters()]) + 1),
    ):
        first, others = Wide(0), copy.deepcopy(connectors)
        with (
            OutOfMemoryAt(nth),
            pytest.raises(torch.OutOfMemoryError),
            visitor.whole(instead_of=[first, others]),
        ):
            raise AssertionError(place)
        assert standing(model) == before
        assert devices(first) == devices(others) == {"meta"}


def test_others_that_cannot_come_back_end_the_clip():
    """Not as an error after which the clip could be made without Gemma."""
    model, other = nn.Module(), Wide(0)
    model.layers = nn.ModuleList([Wide(1)])
    visitor = residency.Visitor(model, blocks=("layers",), device=torch.device("meta"))
    with (
        OutOfMemoryAt(2, ever_after=True),
        pytest.raises(OutOfMemoryError, match="finds none to come back to"),
        visitor.whole(instead_of=[other]),
    ):
        raise AssertionError


@torch.inference_mode()
def test_linears_put_into_fp8_take_half_the_bytes_and_stay_close():
    block = nn.Module()
    block.inner = Wide(0).to(torch.bfloat16)
    x = torch.randn(8, 512, dtype=torch.bfloat16)
    expected = block.inner(x)
    residency.to_fp8(block, "inner")
    found = block.inner(x)
    assert block.inner.linear.weight.dtype is torch.float8_e4m3fn
    distance = (found - expected).norm() / expected.norm()
    assert 0 < distance < 0.06
