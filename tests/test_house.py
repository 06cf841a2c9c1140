"""What is written about the project agrees with the project."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from pydantic_core import PydanticUndefined

from server.schema import ImageToVideoInput
from server.settings import Settings

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "examples/photos").glob("*.jpg"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOP = {path.name for path in ROOT.iterdir()}


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default() if field.default is not PydanticUndefined else "~/.local/share/ltxd"
        shown = "[]" if default == () else f"{default:.15g}" if isinstance(default, float) else str(default)
        rows.append(f"| `LTX_{name.upper()}` | `{shown}` | {field.description} |")
    return "\n".join(rows)


def test_the_readme_lists_every_setting_as_it_is():
    wanted = settings_table()
    assert wanted in (ROOT / "README.md").read_text(), f"README.md should hold:\n{wanted}"


def test_the_architecture_says_where_every_field_of_the_api_is_served():
    text = (ROOT / "docs/architecture.md").read_text()
    assert not [name for name in ImageToVideoInput.model_fields if f"| `{name}` |" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_a_page_names_exists(page):
    named = re.findall(r"`([\w.-]+(?:/[\w.<>*-]+)*)`", page.read_text())
    paths = [name for name in named if name.split("/")[0] in TOP and "/" in name and "*" not in name]
    assert not [path for path in paths if not (ROOT / path).exists() and not path.startswith(("out/", "data/"))]
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_target_a_page_names_exists(page):
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z][a-z-]+)`", page.read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("record", sorted((ROOT / "docs/design").glob("*.md")), ids=lambda p: p.stem)
def test_a_design_record_is_short_and_has_its_three_parts(record):
    text = record.read_text()
    assert len(text.splitlines()) <= 60
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_the_photos_are_those_whose_origin_is_written_down():
    text = (ROOT / "examples/photos/README.md").read_text()
    assert len(PHOTOS) >= 7
    for photo in PHOTOS:
        assert f"{hashlib.sha256(photo.read_bytes()).hexdigest()}  {photo.name}" in text
        with Image.open(photo) as picture:
            assert f"| `{photo.name}` {picture.width}x{picture.height} |" in text
            assert max(picture.size) <= 640
        assert photo.stat().st_size < 120_000


def test_every_dependency_is_pinned_to_a_plain_release():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert all(re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", version) for version in pins.values())
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    names = {re.match(r"[\w-]+", spec)[0].replace("_", "-").lower() for spec in wanted}
    assert names <= {name.replace("_", "-").lower() for name in pins}


def test_the_javascript_lock_is_exact_and_names_no_host():
    folder = ROOT / "tests/contract"
    lock = json.loads((folder / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/@fal-ai/client"]["version"] == "1.10.1"
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]


def test_nothing_names_a_folder_of_the_machine_it_was_written_on():
    home = "/" + "work" + "/"
    suffixes = {".py", ".md", ".toml", ".txt", ".json", ".mjs", ".yaml", ""}
    skipped = re.compile(r"\.(?!ci$|pre-commit|gitignore|dockerignore).*|(node|python)_modules|out|data|.*\.egg-info")
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.suffix in suffixes and path.is_file() and not any(skipped.fullmatch(part) for part in parts):
            assert home not in path.read_text("utf-8", "replace"), path
