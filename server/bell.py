"""Wakes whoever waits for something to change, without a message being lost between looking and waiting."""

import asyncio


class Bell:
    """Rung at every change. Take `rings` before looking, and wait for it to have grown."""

    def __init__(self) -> None:
        self.rings = 0
        self._heard = asyncio.Event()

    def ring(self) -> None:
        """Wakes all who wait."""
        self.rings += 1
        self._heard.set()
        self._heard = asyncio.Event()

    async def wait(self, seen: int, *, at_most: float) -> None:
        """Returns once the bell was rung after `seen`, or after `at_most` seconds."""
        if self.rings != seen:
            return
        try:
            async with asyncio.timeout(at_most):
                await self._heard.wait()
        except TimeoutError:
            return
