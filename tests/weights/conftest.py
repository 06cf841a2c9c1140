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
def upsampler_layout():
    """Names and shapes of the published upsampler."""
    raw = (Path(__file__).parent / "layout" / "ltx-2.3.json.gz").read_bytes()
    return [(name, tuple(shape)) for _, name, shape in json.loads(gzip.decompress(raw))["tensors"]["upsampler"]]
