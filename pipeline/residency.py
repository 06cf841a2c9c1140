"""Where weights are while they are not needed: on the device, or on the host and brought over block by block."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from pipeline.errors import OutOfMemoryError
from pipeline.memory import LARGE, SLOTS
from weights import fp8

_ALIGNED: Final = 256
Pin = Callable[[Tensor], Tensor]
"""Gives the copy of a tensor that waits on the host."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module keeps a tensor, and the copy of it that waits on the host."""

    module: nn.Module
    name: str
    host: Tensor

    def put(self, value: Tensor) -> None:
        """Lets the module see `value`."""
        if self.name in dict(self.module.named_buffers(recurse=False)):
            setattr(self.module, self.name, value)
        else:
            setattr(self.module, self.name, nn.Parameter(value, requires_grad=False))


class Streamed(nn.ModuleList):
    """Blocks whose large weights wait on the host; iterating brings them over, each while the one before computes.

    They share as many slots of device memory as are filled at once. Iterating is the only way to blocks that are
    filled; `children` gives them as they are, with their small tensors. While it is not open it is an ordinary list.
    """

    def __init__(self, blocks: Iterable[nn.Module], *, device: torch.device, pin: Pin | None = None) -> None:
        super().__init__(blocks)
        self._device = device
        self._waiting = [
            _pinned((place for place in _places(block) if place.host.nbytes >= LARGE), pin or _pin(device))
            for block in self.children()
        ]
        for block in self.children():
            move(block, device, below=LARGE)
        self._slots: list[_Slot] = []

    @property
    def waiting(self) -> list[_Place]:
        """What waits on the host."""
        return [place for places in self._waiting for place in places]

    @property
    def slot_bytes(self) -> int:
        """Of one slot: as much as the largest block needs."""
        return max(sum(_padded(place.host) for place in places) for places in self._waiting)

    def open(self) -> None:
        """Takes the memory of the slots."""
        self._slots = [_Slot(self.slot_bytes, self._device) for _ in range(SLOTS)]
        for index, places in enumerate(self._waiting):
            for place, view in zip(places, self._slots[index % SLOTS].views(places), strict=True):
                place.put(view)

    def close(self) -> None:
        """Gives it back."""
        for place in self.waiting:
            place.put(place.host)
        self._slots = []

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = list(self.children())
        if not self._slots:
            yield from blocks
            return
        self._fetch(0)
        for index, block in enumerate(blocks):
            if index + 1 < len(blocks):
                self._fetch(index + 1)
            slot = self._slots[index % SLOTS]
            slot.begin()
            yield block
            slot.end()

    def __getitem__(self, index: Any) -> Any:
        """A whole slice is the list itself: transformers' models go through their layers by one."""
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self
        return super().__getitem__(index)

    def _fetch(self, index: int) -> None:
        self._slots[index % SLOTS].fill(self._waiting[index])


class _Slot:
    """Device memory for one block. On CUDA it is filled on a stream of its own, in order with who computes from it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)
        self._order = _Order(self._bytes) if device.type == "cuda" else None

    def views(self, places: list[_Place]) -> Iterator[Tensor]:
        """Its memory as the tensors of a block."""
        begin = 0
        for place in places:
            flat = self._bytes[begin : begin + place.host.nbytes]
            yield flat.view(place.host.dtype).view(place.host.shape)
            begin += _padded(place.host)

    def fill(self, places: list[_Place]) -> None:
        """Brings a block over, once nothing computes from the one before."""
        with self._order.filling() if self._order else contextlib.nullcontext():
            for place, view in zip(places, self.views(places), strict=True):
                view.copy_(place.host, non_blocking=True)

    def begin(self) -> None:
        """Lets what follows wait, on the device, for the block to have arrived."""
        if self._order:
            self._order.begin()

    def end(self) -> None:
        """Marks that what computes from the block has been queued."""
        if self._order:
            self._order.end()


class _Order:
    """Keeps copies into a slot and computing from it apart, on the device: the host waits for neither."""

    def __init__(self, slot: Tensor) -> None:
        self._copying, self._device = torch.cuda.Stream(slot.device), slot.device
        self._filled, self._free = torch.cuda.Event(), torch.cuda.Event()
        slot.record_stream(self._copying)
        self.end()

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        with torch.cuda.stream(self._copying):
            self._copying.wait_event(self._free)
            yield
            self._filled.record(self._copying)

    def begin(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._filled)

    def end(self) -> None:
        self._free.record(torch.cuda.current_stream(self._device))


def stream_blocks(transformer: Any, *, device: torch.device) -> None:
    """Lets the blocks of a transformer on the host wait there, and moves what is left of it to `device`."""
    blocks = Streamed(transformer.transformer_blocks, device=device)
    transformer.transformer_blocks = nn.ModuleList()
    move(transformer, device)
    transformer.transformer_blocks = blocks
    blocks.open()


class Visitor:
    """A model that lives on the host and comes to the device while it is used: its blocks by turns, or all of it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Sequence[str],
        left: Sequence[str] = (),
        device: torch.device,
        pin: Pin | None = None,
    ) -> None:
        """`blocks` names the lists that come by turns, `left` what then stays on the host."""
        self._device = device
        self._lists = []
        for path in blocks:
            streamed = Streamed(model.get_submodule(path).children(), device=device, pin=pin)
            model.set_submodule(path, streamed)
            self._lists.append(streamed)
        in_lists = {id(part) for streamed in self._lists for part in streamed.modules()}
        in_left = {id(part) for path in left for part in model.get_submodule(path).modules()}
        rest = _pinned((place for place in _places(model) if id(place.module) not in in_lists), pin or _pin(device))
        self._left = [place for place in rest if id(place.module) in in_left]
        self._along = [place for place in rest if id(place.module) not in in_left]

    @contextlib.contextmanager
    def by_turns(self) -> Iterator[None]:
        """Brings over what its blocks need beside them, and lets them come each in its turn."""
        with _brought(self._along, self._device), contextlib.ExitStack() as opened:
            for streamed in self._lists:
                opened.callback(streamed.close)
                streamed.open()
            yield

    @contextlib.contextmanager
    def whole(self, *, instead_of: Sequence[nn.Module] = ()) -> Iterator[None]:
        """Brings all of it over, and lets others wait on the host meanwhile."""
        blocks = [place for streamed in self._lists for place in streamed.waiting]
        with _aside(instead_of, self._device), _brought([*self._along, *self._left, *blocks], self._device):
            yield


@contextlib.contextmanager
def _aside(modules: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Keeps modules on the host, in memory that is not pinned: pinning so much would take longer than the copy.

    Raises: OutOfMemoryError if there is no room to come back to. They are then of no use to anyone.
    """
    try:
        for module in modules:
            move(module, torch.device("cpu"))
        yield
    finally:
        try:
            for module in modules:
                move(module, device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"what made room for the text encoder finds none to come back to: {error}"
            ) from error


@contextlib.contextmanager
def _brought(places: Sequence[_Place], device: torch.device) -> Iterator[None]:
    """Lets modules see their tensors on `device`. Tied weights are one tensor on both sides."""
    moved: dict[tuple[int, torch.Size], Tensor] = {}
    try:
        for place in places:
            key = _identity(place.host)
            if key not in moved:
                moved[key] = place.host.to(device, non_blocking=True)
            place.put(moved[key])
        moved.clear()
        yield
    finally:
        # an error holds this frame, and others may need the memory to come back
        moved.clear()
        for place in places:
            place.put(place.host)


def visiting_text_encoder(model: nn.Module, *, device: torch.device, pin: Pin | None = None) -> Visitor:
    """A Gemma whose layers come by turns to read a prompt: words are looked up on the host, and pictures not seen."""
    left = ("model.language_model.embed_tokens", "model.vision_tower", "model.multi_modal_projector", "lm_head")
    return Visitor(model, blocks=("model.language_model.layers",), left=left, device=device, pin=pin)


def visiting_connectors(connectors: nn.Module, *, device: torch.device, pin: Pin | None = None) -> Visitor:
    """Connectors whose blocks come by turns."""
    blocks = ("video_connector.transformer_blocks", "audio_connector.transformer_blocks")
    return Visitor(connectors, blocks=blocks, device=device, pin=pin)


def move(module: nn.Module, device: torch.device, *, below: int | None = None) -> None:
    """Moves its tensors, or those of fewer bytes, to `device`. Tied weights stay one tensor."""
    moved: dict[tuple[int, torch.Size], Tensor] = {}
    for place in _places(module):
        if below is None or place.host.nbytes < below:
            key = _identity(place.host)
            if key not in moved:
                moved[key] = place.host.to(device)
            place.put(moved[key])


def to_fp8(module: nn.Module, within: str) -> None:
    """Puts every Linear under `within` that is not in fp8 yet into it, with a fresh scale. Inputs stay as they are."""
    for name, linear in list(module.get_submodule(within).named_modules(prefix=within)):
        if not isinstance(linear, nn.Linear):
            continue
        weight, bias = linear.weight.detach(), linear.bias
        scale = fp8.fresh_scale(weight)
        fp8.replace(module, name, has_input_scale=False)
        tensors = {"weight": fp8.quantise(weight, scale), "weight_scale": scale}
        if bias is not None:
            tensors["bias"] = bias.detach()
        module.get_submodule(name).load_state_dict(tensors, strict=True, assign=True)


def _places(module: nn.Module) -> Iterator[_Place]:
    for part in module.modules():
        for name, value in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            yield _Place(part, name, value.detach())


def _pin(device: torch.device) -> Pin:
    return Tensor.pin_memory if device.type == "cuda" else Tensor.detach


def _pinned(places: Iterator[_Place], pin: Pin) -> list[_Place]:
    """The same places with pinned tensors, which the modules see at once: two copies of a model never live together.

    Tied weights stay one tensor.
    """
    pinned: dict[tuple[int, torch.Size], Tensor] = {}
    found = []
    for place in places:
        key = _identity(place.host)
        if key not in pinned:
            pinned[key] = pin(place.host)
        found.append(_Place(place.module, place.name, pinned[key]))
        found[-1].put(pinned[key])
    return found


def _identity(tensor: Tensor) -> tuple[int, torch.Size]:
    """The same for tied weights, and for no two others that live."""
    return tensor.data_ptr(), tensor.shape


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNED) * _ALIGNED
