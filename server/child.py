"""The generating process as the agent sees it: started by exec, spoken to over a socket pair, killed when it hangs."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence

from pipeline.wire import Message, Stop, WireError, pack, receive_from
from server.last_words import tellable
from server.settings import Settings

TAIL_LINES = 40
STOP_SECONDS = 5.0

Command = Callable[[int], Sequence[str]]
"""The argument vector of a generating process that talks on the file descriptor given. Its residency is appended."""

log = logging.getLogger("ltxd.worker")


class ChildLostError(Exception):
    """The generating process died, failed or went silent. `str(error)` says how, and may be told to the caller.

    `detail` is what it said last.

    `with_last_words` and `with_last_line` are for the operator: they may hold anything that a library prints.
    """

    def __init__(self, how: str, *, detail: str = "") -> None:
        told = tellable(detail.splitlines())
        super().__init__(how if told is None else f"{how} ({told})")
        self.with_last_words = f"{how}: {detail}" if detail else how
        self.with_last_line = f"{how}: {detail.splitlines()[-1]}" if detail else how


class ChildSilentError(ChildLostError):
    """It went silent."""


def worker_command(settings: Settings) -> Command:
    """The command of the real generating process."""

    def command(fd: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "pipeline.worker",
            f"--fd={fd}",
            f"--recipe={settings.recipe}",
            f"--models={settings.models}",
            f"--device={settings.device}",
            f"--passes-per-call={settings.passes_per_call}",
            f"--semantics={settings.semantics}",
            *(["--dequantise"] if settings.dequantise else []),
            f"--safety-threshold={settings.safety_threshold}",
            *([f"--safety-classifier={settings.safety_classifier}"] if settings.safety_classifier else []),
            *(["--force-safety-checker"] if settings.force_safety_checker else []),
        ]

    return command


class Child:
    """One running generating process. What it prints goes to the log; the last lines are kept in `tail`."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._writer = writer
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._tasks = (asyncio.create_task(self._listen(reader)), asyncio.create_task(self._print()))

    @classmethod
    async def start(cls, command: Command, *, residency: str) -> "Child":
        """Starts the process that `command` names."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command(theirs.fileno()),
                f"--residency={residency}",
                pass_fds=[theirs.fileno()],
                env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.returncode is None

    def send(self, message: Message) -> None:
        """Sends `message`; to a process that is gone, nothing."""
        if not self._writer.is_closing():
            self._writer.write(pack(message))

    async def next(self, *, within: float) -> Message:
        """The next message.

        Units: `within` in seconds.
        Raises: ChildLostError if the process ends, ChildSilentError if it says nothing for that long.
        """
        try:
            async with asyncio.timeout(within):
                message = await self._messages.get()
        except TimeoutError:
            raise ChildSilentError(f"gave no sign of life for {within:g} s", detail="\n".join(self.tail)) from None
        if message is None:
            how = _how(await self.kill())
            raise ChildLostError(how, detail="\n".join(self.tail))
        return message

    async def stop(self) -> None:
        """Asks it to leave, and kills it if it does not."""
        self.send(Stop())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        await self.kill()

    async def kill(self) -> int:
        """Ends it now, and everything it started; gives its exit status."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = await self._process.wait()
        self._writer.close()
        await asyncio.gather(*self._tasks)
        return status

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        message: Message | None = None
        try:
            while (message := await receive_from(reader)) is not None:
                self._messages.put_nowait(message)
        except WireError:
            log.exception("the generating process sent rubbish")
        self._messages.put_nowait(None)

    async def _print(self) -> None:
        stream = self._process.stdout
        rest = b""
        while stream is not None and (part := await stream.read(65_536)):
            *lines, rest = (rest + part).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._keep(line)
            rest = rest[-65_536:]
        self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.tail.append(text)
            log.info("%s", text)


def _how(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"left with status {status}"
