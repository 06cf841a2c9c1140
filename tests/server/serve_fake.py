"""`ltxd serve` with the scripted process, as a program of its own: serve_fake.py DATA CLIP [SETTINGS as JSON]."""

import asyncio
import json
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
sys.path.insert(0, str(ROOT))


async def main() -> None:
    from server.logs import set_up_logs
    from server.serve import serve
    from server.settings import Settings

    set_up_logs("auto")
    data = Path(sys.argv[1])
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def command(fd: int) -> list[str]:
        start = (
            "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
            "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
        )
        flags = [f"--fd={fd}", f"--marker={data / 'marker'}", f"--clip={sys.argv[2]}"]
        return [sys.executable, "-c", start, str(ROOT), str(FAKE_WORKER), *flags]

    def on_start(ports: object) -> None:
        loaded = sorted({"torch", "diffusers", "transformers", "weights"} & set(sys.modules))
        sys.stdout.write(f"{ports.http} {','.join(loaded)}\n")
        sys.stdout.flush()

    given = {"port": 0, "tls_port": 0} | json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}")
    await serve(Settings(data=data, **given), command=command, stop=stop, on_start=on_start)


asyncio.run(main())
