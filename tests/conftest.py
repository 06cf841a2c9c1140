import importlib.util
import os
import warnings
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
# huggingface_hub reads it when it is imported: without it, it calls home before it calls the hub of a test
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of the tiny checkpoint that the golden numbers were made with."""
    spec = importlib.util.spec_from_file_location("canonical", GOLDEN / "canonical.py")
    canonical = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(canonical)
    folder = tmp_path_factory.mktemp("tiny")
    with warnings.catch_warnings():
        # the script leaves closing its files to the interpreter
        warnings.simplefilter("ignore", ResourceWarning)
        canonical.write(GOLDEN / "layout_tiny.json", folder)
    return folder
