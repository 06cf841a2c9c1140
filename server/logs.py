"""How the server writes its log: a line for people on a terminal, an object of JSON a line elsewhere.

Keys, prompts and URLs are nowhere in it by default.
"""

import logging
import sys
from typing import Final

import structlog

from server.settings import LogFormat

QUIET: Final = ("uvicorn", "httpx2", "httpcore2", "alembic", "obstore")
"""Libraries whose warnings are enough: at their usual level they tell every URL that is asked for."""

UPGRADES: Final = ("Unsupported upgrade request", "No supported WebSocket library")


def set_up_logs(form: LogFormat) -> None:
    """Sends all that is logged to standard error.

    What `structlog.contextvars` binds, such as request_id and attempt, stands in every line of its task, and so does
    what a call passes as `extra`.
    """
    people = form == "console" or (form == "auto" and sys.stderr.isatty())
    known: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    shown: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if people
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=known,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shown],
        )
    )
    # why: uvicorn warns of each handshake of a WebSocket, which any caller can send and no route speaks
    handler.addFilter(lambda record: not record.getMessage().startswith(UPGRADES))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
