"""What the server writes to its log, and what it does not: keys, prompts and URLs are nowhere in it by default."""

import logging

# why: at their usual level they tell every URL that is asked for
QUIET = ("uvicorn", "httpx2", "httpcore2", "alembic")


def set_up_logs() -> None:
    """Logs to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)
