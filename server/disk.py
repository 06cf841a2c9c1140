"""The free space of the disk that holds a folder."""

import os
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
