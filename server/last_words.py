"""What of a generating process's last words may be told to the caller: how it failed, nothing of what it worked on."""

import re
from collections.abc import Sequence
from typing import Final

TELLABLE: Final = (
    # the crash handler's first line, a word of CUDA's, of the C++ library's, and the class of a Python error
    re.compile(r"Fatal Python error: [A-Za-z ]+"),
    re.compile(r"CUDA error: [A-Za-z ,'()-]+"),
    re.compile(r"terminate called after throwing an instance of '[\w:]+'"),
    re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)(?=:|$)"),
)
"""Forms of words that come from a fixed stock, the most telling first. Paths, sizes and texts are in none."""


def tellable(lines: Sequence[str]) -> str | None:
    """The most telling of the `lines`, cut to what may be told; of several of one form the last; None if none is."""
    for form in TELLABLE:
        for line in reversed(lines):
            if found := form.search(line):
                return found.group().strip()
    return None
