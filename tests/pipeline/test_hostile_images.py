"""Pillow's own test images, crashers and bombs among them, through our loader. They come from its source package."""

import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import PIL
import pytest

ROOT = Path(__file__).parents[2]
TOO_LONG = 5.0
TOO_MUCH = 1_000_000
"""Kilobytes of memory."""

LOAD_ALL = """
import json, resource, sys, time
from pathlib import Path
from pipeline.errors import CallerError
from pipeline.picture import open_picture, save_picture

out = Path(sys.argv[2])
for path in sorted(Path(sys.argv[1]).rglob("*")):
    if not path.is_file():
        continue
    print(json.dumps({"next": path.name}), flush=True)
    began = time.process_time()
    try:
        save_picture(open_picture(path.read_bytes()), out)
        end = "taken"
    except CallerError as error:
        end = type(error).__name__
    except Exception as error:
        end = f"unknown: {type(error).__name__}: {error}"
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"name": path.name, "end": end, "seconds": seconds, "memory": memory}), flush=True)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pillow")
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pillow"]
    subprocess.run([*download, f"--dest={folder}", f"pillow=={PIL.__version__}"], check=True)
    (package,) = folder.glob("*.tar.gz")
    with tarfile.open(package) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.glob("*/Tests/images")
    return found


@pytest.mark.slow
def test_a_thousand_hostile_images_end_in_known_errors_soon_and_in_little_memory(images, tmp_path):
    made = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(images), str(tmp_path / "out.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [json.loads(line) for line in made.stdout.splitlines()]
    assert made.returncode == 0, f"it died at {lines[-1]}: {made.stderr}"
    told = [line for line in lines if "end" in line]
    ends = Counter(line["end"] for line in told)
    slowest, largest = max(told, key=lambda line: line["seconds"]), told[-1]["memory"]
    sys.stdout.write(f"{len(told)} images: {dict(ends)}; slowest {slowest}; {largest} kB\n")
    assert len(told) >= 1000
    assert [line for line in told if line["end"].startswith("unknown")] == []
    assert slowest["seconds"] < TOO_LONG
    assert largest < TOO_MUCH
    assert ends["taken"] > 300
    assert sum(ends.values()) - ends["taken"] > 300
