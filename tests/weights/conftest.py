import gzip
import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def published_layout():
    """Shape of every published tensor, under its published name, by component."""
    raw = (Path(__file__).parent / "layout" / "ltx-2.3.json.gz").read_bytes()
    tensors = json.loads(gzip.decompress(raw))["tensors"]
    return {kind: {name: tuple(shape) for name, _, shape in rows} for kind, rows in tensors.items()}
