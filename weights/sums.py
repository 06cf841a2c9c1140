"""The sum of a whole file, held against the published one and remembered in its stamp."""

import hashlib
from pathlib import Path
from typing import Final

from tqdm import tqdm

from weights import stamp
from weights.errors import WeightsFileError
from weights.manifest import Manifest

_CHUNK: Final = 1 << 24


def sum_of(path: Path) -> str:
    """The sha256 of the whole file, with a bar on stderr while it is taken."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, desc=f"sha256 {path.name[:40]}", unit="B", unit_scale=True) as bar,
    ):
        while piece := file.read(_CHUNK):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def take_sum(path: Path, *, manifest: Manifest) -> str:
    """Takes the sum of `path`, stamps the file, and gives a line that says what came of it.

    Raises: WeightsFileError if the file is called like a published one and is another.
    """
    found, file = sum_of(path), manifest.of_path(path)
    if file is not None and file.sha256 not in {None, found}:
        stamp.place(path).unlink(missing_ok=True)
        raise WeightsFileError(
            path,
            found=f"sha256 {found}",
            expected=f"{file.sha256}, as {file.repository} has published it",
        )
    stamp.write(path, sha256=found)
    same = next((known for known in manifest.files if known.sha256 == found), None)
    return f"{path}: sha256 {found}, " + (
        f"that of {same.name}" if same else "of no file that ltxd fetches; remembered"
    )
