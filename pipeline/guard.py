"""Finds NaN and infinity in latents while they are made, without the host waiting for the device."""

import torch
from torch import Tensor

from pipeline.errors import NumericalError


class Guard:
    """Watches tensors. What it finds it tells one `watch` late, when the device is certain to have come so far."""

    def __init__(self) -> None:
        self._before: _Flag | None = None

    def watch(self, place: str, *latents: Tensor) -> None:
        """Has the device look at `latents`, made at `place`, and waits for what it saw at the place before.

        Raises: NumericalError for the place before.
        """
        self._before, before = _Flag(place, latents), self._before
        if before is not None:
            before.read()

    def close(self) -> None:
        """Waits for the last place. Raises: NumericalError."""
        before, self._before = self._before, None
        if before is not None:
            before.read()


class _Flag:
    """Whether some tensors are finite, on its way to the host."""

    def __init__(self, place: str, latents: tuple[Tensor, ...]) -> None:
        self._place = place
        finite = torch.stack([tensor.isfinite().all() for tensor in latents]).all()
        self._arrived: torch.cuda.Event | None = None
        if finite.device.type == "cuda":
            self._finite = torch.empty((), dtype=torch.bool, pin_memory=True)
            self._finite.copy_(finite, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._finite = finite.to("cpu", non_blocking=True)

    def read(self) -> None:
        if self._arrived is not None:
            self._arrived.synchronize()
        if not self._finite:
            raise NumericalError(
                f"{self._place}: the latents hold NaN or infinity. Weights may be damaged (ltxd weights check) or the "
                "device or its driver may compute wrongly (ltxd selftest)"
            )
