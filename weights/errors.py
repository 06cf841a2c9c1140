"""What can be wrong with a model file."""

from pathlib import Path


class WeightsFileError(Exception):
    """A model file is missing, malformed, altered, or not the one that is needed.

    The message names the file, what was found, what was expected, and, where one is known, the command that mends it.
    """

    def __init__(self, path: Path, *, found: str, expected: str, fix: str = "") -> None:
        super().__init__(f"{path}: found {found}; expected {expected}" + (f". To mend it: {fix}" if fix else ""))
        self.fix = fix


class FetchError(Exception):
    """A file could not be fetched. The message says why, and what to do."""
