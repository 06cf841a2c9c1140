"""Files come from a hub on loopback: whole or not at all, resumed, and never more than once."""

import hashlib
import os
import random

import pytest

from tests.weights.stub_hub import Hub, serve
from weights import fetch as fetching
from weights import stamp
from weights.errors import FetchError
from weights.manifest import Manifest, PublishedFile

REVISION = "a" * 40
CONTENT = random.Random(0).randbytes(300_000)
CHUNK = 10 * 1024**2
"""Bytes that huggingface_hub writes at a time: less is lost when a connection breaks."""
LONG = CONTENT * 80


def published(content=CONTENT, *, name="folder/model.bin", known=True, gated=False):
    return PublishedFile(
        name=name,
        repository="maker/model",
        revision=REVISION,
        path=name.rpartition("/")[2],
        size=len(content) if known else None,
        sha256=hashlib.sha256(content).hexdigest() if known else None,
        gated=gated,
        terms="https://example.org/terms",
    )


def url(file):
    return f"/{file.repository}/resolve/{file.revision}/{file.path}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve(Hub({url(published()): CONTENT})) as hub:
        yield hub


@pytest.fixture
def said():
    return []


@pytest.fixture
def get(hub, tmp_path, said):
    def get(*files):
        fetching.fetch(files, tmp_path / "models", endpoint=hub.address, say=said.append)

    return get


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "folder" / "model.bin"


def ranges(hub):
    return [asked for _, asked in hub.asked]


def test_a_file_is_fetched_verified_stamped_and_nothing_is_left_beside_it(get, path, said):
    get(published())
    assert path.read_bytes() == CONTENT
    assert stamp.Stamp.read(path).sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert sorted(p.name for p in path.parent.iterdir()) == [".model.bin.stamp.json", "model.bin"]
    assert not any(p.is_file() for p in path.parents[1].joinpath(fetching.PARTS).rglob("*"))
    assert said[0].startswith("1 files to fetch, 0.0 GB; ")
    assert said[-1] == "folder/model.bin: fetched and whole"


def test_a_file_that_is_there_and_whole_is_not_fetched_again(get, hub, path, said):
    get(published())
    get(published())
    stamp.place(path).unlink()
    get(published())
    assert len(hub.asked) == 1
    assert said[-1] == "folder/model.bin: is there and whole"
    assert stamp.Stamp.read(path) is not None


def test_a_connection_that_breaks_is_taken_up_where_it_broke(get, hub, path):
    file = published(LONG)
    hub.files[url(file)] = LONG
    hub.cut_after = [2 * CHUNK + 100]
    get(file)
    assert path.read_bytes() == LONG
    assert ranges(hub) == [None, f"bytes={2 * CHUNK}-"]


def test_a_later_run_goes_on_from_the_part_of_the_one_before(get, hub, path, tmp_path):
    file = published()
    part = tmp_path / "models" / fetching.PARTS / f"{file.name}.{REVISION[:12]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:123_456])
    get(file)
    assert path.read_bytes() == CONTENT
    assert ranges(hub) == ["bytes=123456-"]


def test_what_broke_off_for_good_is_kept_and_the_message_says_how_to_go_on(get, hub, path):
    file = published(LONG)
    hub.files[url(file)] = LONG
    hub.cut_after, hub.refuses_ranges = [CHUNK + 100], True
    with pytest.raises(FetchError, match=f"broke off after {CHUNK:,} bytes: .* run the same command again"):
        get(file)
    assert not path.exists()
    hub.refuses_ranges = False
    get(file)
    assert path.read_bytes() == LONG
    assert ranges(hub)[-1] == f"bytes={CHUNK}-"


@pytest.mark.parametrize("known", [True, False])
def test_an_altered_file_is_thrown_away_and_never_takes_its_place(get, hub, path, known):
    file = published(known=known)
    altered = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    hub.files[url(file)] = altered
    if known:
        with pytest.raises(FetchError, match=f"found a file with the sum .* expected {file.sha256}"):
            get(file)
        assert not path.exists()
        assert not any(p.is_file() for p in path.parents[1].rglob("*"))
    else:
        # nothing but the hub's own word to hold it against
        get(file)
        assert path.read_bytes() == altered


def test_a_file_of_unknown_sum_is_held_against_the_hubs(get, path, tmp_path):
    file = published(known=False)
    part = tmp_path / "models" / fetching.PARTS / f"{file.name}.{REVISION[:12]}"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"other beginning")
    with pytest.raises(FetchError, match="It has been thrown away"):
        get(file)
    get(file)
    assert path.read_bytes() == CONTENT


def test_another_length_than_published_is_refused_before_a_byte_is_fetched(get, hub):
    hub.files[url(published())] = CONTENT + b"!"
    with pytest.raises(FetchError, match=r"found 300001 bytes at http.*; expected 300000"):
        get(published())
    assert not hub.asked


def test_an_altered_file_in_its_place_is_replaced(get, path, said):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * len(CONTENT))
    get(published())
    assert path.read_bytes() == CONTENT
    assert "it is fetched anew" in said[0]


def test_a_disk_too_small_is_told_before_anything_is_fetched(get, hub, path):
    huge = published()
    huge = PublishedFile(**{name: getattr(huge, name) for name in huge.__slots__} | {"size": 10**18})
    with pytest.raises(FetchError, match=r"found [\d,]+ bytes free; expected at least 1,000,000,001,000,000,000"):
        get(huge)
    assert not hub.asked
    assert not path.exists()


@pytest.mark.parametrize("other", [None, "wrong"])
def test_a_gated_repository_is_explained_and_a_token_opens_it(get, hub, path, monkeypatch, other):
    right = "right"
    hub.token = right
    if other:
        monkeypatch.setenv("HF_TOKEN", other)
    with pytest.raises(FetchError, match=r"accepted its terms.* log in at https://example.org/terms .* HF_TOKEN"):
        get(published(gated=True))
    monkeypatch.setenv("HF_TOKEN", right)
    get(published(gated=True))
    assert path.read_bytes() == CONTENT


def test_a_file_that_the_hub_does_not_have_is_named(get, hub):
    hub.files.clear()
    with pytest.raises(
        FetchError, match=r"folder/model\.bin: http.*/maker/model/resolve/a{40}/model\.bin is not there"
    ):
        get(published())


def test_no_hub_at_all_is_a_message_and_not_a_trace(tmp_path, said):
    with pytest.raises(FetchError, match="broke off after 0 bytes"):
        fetching.fetch([published()], tmp_path, endpoint="http://127.0.0.1:9", say=said.append)


def test_a_change_of_size_or_time_is_seen_by_the_stamp(get, path):
    file = published()
    get(file)
    assert stamp.is_current(path, file)
    os.utime(path, ns=(0, 1))
    assert not stamp.is_current(path, file)


def test_a_manifest_finds_files_and_folders_by_name_and_by_path(tmp_path):
    one, two = published(), published(name="folder/other.bin")
    manifest = Manifest((one, two))
    assert manifest.find("folder/other.bin") == [two]
    assert manifest.find("folder") == [one, two]
    assert manifest.find("fold") == []
    assert manifest.of_path(tmp_path / "folder" / "model.bin") == one
    assert manifest.of_path(tmp_path / "model.bin") is None
