import pytest


@pytest.fixture(scope="module")
def url(server, image):
    return server.run(prompt="a", image_url=image).json()["video"]["url"]


def test_a_file_comes_with_its_type_and_may_be_read_by_any_page(server, url):
    answer = server.http.get(url, headers={"origin": "https://elsewhere.example"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "content-range" in answer.headers["access-control-expose-headers"]
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert answer.headers["content-disposition"].startswith("inline")


def test_a_head_tells_the_length_alone(server, url):
    answer = server.http.head(url)
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(server.http.get(url).content)
    assert answer.content == b""


@pytest.mark.parametrize(
    ("asked", "part"), [("bytes=0-9", slice(0, 10)), ("bytes=5-", slice(5, None)), ("bytes=-7", slice(-7, None))]
)
def test_a_range_is_206(server, url, asked, part):
    whole = server.http.get(url).content
    answer = server.http.get(url, headers={"range": asked})
    assert answer.status_code == 206
    assert answer.content == whole[part]
    assert answer.headers["content-range"].endswith(f"/{len(whole)}")


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0", "bytes=99999999-99999999"])
def test_a_range_past_the_end_is_416_and_is_told_the_length(server, url, asked):
    answer = server.http.get(url, headers={"range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(server.http.get(url).content)}"


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=x-y", "bytes=5-2", "items=0-5", "0-5", "bytes=0-1,x", "bytes=" + "9" * 5000 + "-", "="]
)
def test_a_range_that_is_not_understood_is_as_good_as_none(server, url, asked):
    answer = server.http.get(url, headers={"range": asked})
    assert answer.status_code == 200
    assert answer.content == server.http.get(url).content


def test_several_ranges_come_in_one_answer(server, url):
    whole = server.http.get(url).content
    answer = server.http.get(url, headers={"range": "bytes=0-3, 10-19,-5"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert int(answer.headers["content-length"]) == len(answer.content)
    for part in (whole[0:4], whole[10:20], whole[-5:]):
        assert b"\r\n\r\n" + part + b"\r\n" in answer.content
    # one range that starts at 0 and has no end is the whole, as a part
    answer = server.http.get(url, headers={"range": "bytes=0-"})
    assert (answer.status_code, answer.content) == (206, whole)


def test_a_known_etag_is_304_and_a_stale_one_gets_the_whole(server, url):
    etag = server.http.get(url).headers["etag"]
    assert server.http.get(url, headers={"if-none-match": etag}).status_code == 304
    assert server.http.get(url, headers={"if-none-match": f'"x", W/{etag}'}).status_code == 304
    assert server.http.get(url, headers={"if-none-match": "*"}).status_code == 304
    assert server.http.get(url, headers={"if-none-match": '"x"'}).status_code == 200
    assert server.http.get(url, headers={"range": "bytes=0-1", "if-range": etag}).status_code == 206
    assert server.http.get(url, headers={"range": "bytes=0-1", "if-range": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/files/0/x.mp4", "/files/../lock", "/files/%2e%2e/ltxd.sqlite3", "/files/", "/files"]
)
def test_what_is_not_a_file_is_404(server, path):
    assert server.http.get(path).status_code == 404


def test_a_file_is_found_under_its_own_name_only(server, url):
    assert server.http.get(url.rpartition("/")[0] + "/other.mp4").status_code == 404


def test_an_expired_result_is_gone(launch, image):
    with launch(result_retention=0.001) as it:
        job = it.submit(prompt="a", image_url=image)
        it.wait(job)
        assert it.http.get(job["response_url"]).status_code == 404


def test_a_result_whose_bytes_are_lost_is_404(launch, image):
    with launch() as it:
        clip = it.submit(prompt="a", image_url=image)
        within = it.submit(prompt="a", image_url=image, sync_mode=True)
        for job in (clip, within):
            it.wait(job)
        url = it.http.get(clip["response_url"]).json()["video"]["url"]
        for path in (it.settings.data / "blobs").rglob("*"):
            if path.is_file():
                path.unlink()
        for lost in (url, within["response_url"]):
            assert it.http.get(lost).status_code == 404


def test_our_own_file_is_read_without_http_as_a_start_image(server, url):
    # an MP4 is no image: that it is told so, and not that it is on loopback, shows that it was read
    answer = server.run(prompt="a", image_url=url)
    assert answer.json()["detail"][0]["type"] == "unsupported_image_format"
