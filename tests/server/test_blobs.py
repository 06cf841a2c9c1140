import hashlib

import pytest

from server.blobs import BlobsUnavailableError, digest
from server.bucket import CACHE_BYTES, BucketBlobs, _make_room


async def test_a_blob_is_read_back_and_gone_once_deleted(blobs, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"some bytes")
    known = digest(source)
    await blobs.put("a" * 32, source)
    assert (known.size, known.sha256) == (10, hashlib.sha256(b"some bytes").hexdigest())
    assert await blobs.read("a" * 32) == b"some bytes"
    assert (await blobs.local("a" * 32)).read_bytes() == b"some bytes"
    await blobs.delete("a" * 32)
    await blobs.delete("a" * 32)
    for lost in (blobs.read, blobs.local):
        with pytest.raises(FileNotFoundError):
            await lost("a" * 32)


async def test_a_blob_put_again_takes_the_place_of_the_first(blobs, tmp_path):
    for content in (b"first", b"second, and longer"):
        source = tmp_path / "source"
        source.write_bytes(content)
        await blobs.put("b" * 32, source)
        assert (await blobs.local("b" * 32)).read_bytes() == content


async def test_checking_leaves_nothing_behind(blobs, tmp_path):
    await blobs.check()
    assert not [path for path in tmp_path.rglob("*probe*") if path.is_file()]


async def test_a_bucket_that_cannot_be_reached_is_told_in_one_line(tmp_path, monkeypatch):
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
    monkeypatch.setattr("server.bucket.TRY_SECONDS", 0)
    blobs = BucketBlobs("s3://bucket", cache=tmp_path / "cache")
    for asked in (blobs.check(), blobs.read("a" * 32)):
        with pytest.raises(BlobsUnavailableError, match=r"^[^\n]+$"):
            await asked


async def test_the_cache_of_a_bucket_forgets_what_was_fetched_first(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("server.bucket.CACHE_BYTES", 25)
    blobs = BucketBlobs(bucket(monkeypatch), cache=tmp_path / "cache")
    for name in "abc":
        source = tmp_path / "source"
        source.write_bytes(name.encode() * 10)
        await blobs.put(name * 32, source)
        await blobs.local(name * 32)
    assert sorted(path.name[0] for path in (tmp_path / "cache").iterdir()) == ["b", "c"]
    assert await blobs.read("a" * 32) == b"a" * 10


def test_a_copy_that_another_fetch_took_away_meanwhile_is_passed_over(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "kept").write_bytes(b"old")
    _make_room(tmp_path, CACHE_BYTES)
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


async def test_a_large_blob_is_put_in_parts_and_read_back_whole(bucket, tmp_path, monkeypatch):
    blobs = BucketBlobs(bucket(monkeypatch), cache=tmp_path / "cache")
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 50_000)
    known = digest(source)
    await blobs.put("a" * 32, source)
    assert digest(await blobs.local("a" * 32)) == known
