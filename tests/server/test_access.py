"""Who may call, how requests find their role, and what every answer carries."""

import pytest

ENDPOINT = "fal-ai/ltx-2.3-quality/image-to-video"
APP = "fal-ai/ltx-2.3-quality"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"host": "evil.example"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"host": "127.0.0.1:" + 60_000 * "1"},
        {"host": "a@127.0.0.1"},
    ],
)
def test_another_page_may_not_drive_the_server(server, headers):
    for method, path in (("POST", f"/{ENDPOINT}"), ("GET", "/health"), ("OPTIONS", f"/queue/{ENDPOINT}")):
        answer = server.http.request(method, path, headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_another_page_may_not_drive_the_server_by_the_path_of_a_file_with_a_target(server, method):
    for url in ("https://fal.ai/health", f"https://queue.fal.run/{APP}/requests/x/status"):
        headers = {"origin": "https://evil.example", "x-fal-target-url": url}
        answer = server.http.request(method, "/files/x", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1:5173", "http://[::1]:1", "http://app.localhost"]
)
def test_a_page_on_loopback_may_call(server, origin):
    headers = {"origin": origin, "sec-fetch-site": "cross-site"}
    answer = server.http.get("/health", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]
    asked = headers | {"access-control-request-method": "POST", "access-control-request-headers": "x-fal-target-url"}
    before = server.http.options("/api/fal/proxy", headers=asked)
    assert before.status_code == 204
    assert "x-fal-target-url" in before.headers["access-control-allow-headers"]
    assert "PUT" in before.headers["access-control-allow-methods"]


def test_a_neighbour_under_the_same_domain_may_not_drive_the_server_and_another_port_of_this_machine_may(launch):
    with launch(trusted_hosts=("box.lan",)) as it:
        for site, host, status in (
            ("same-site", "box.lan", 403),
            ("cross-site", "box.lan", 403),
            ("same-origin", "box.lan", 200),
            ("none", "box.lan", 200),
            ("same-site", "localhost", 200),
        ):
            answer = it.http.get("/health", headers={"sec-fetch-site": site, "host": host})
            assert (answer.status_code, site) == (status, site)


def test_a_listed_origin_and_a_listed_name_may_call(launch):
    with launch(cors_origins=("https://my.example",), trusted_hosts=("box.lan",)) as it:
        headers = {"origin": "https://my.example", "host": "box.lan:8000"}
        assert it.http.get("/health", headers=headers).status_code == 200


def test_the_proxy_without_a_target_is_400_and_with_a_foreign_one_412(server):
    assert server.http.post("/api/fal/proxy").status_code == 400
    assert server.http.post("/api/fal/proxy").json() == "Invalid request"
    for target in ("https://evil.example/x", "http://fal.run/x", "https://fal.run.evil.example/", "https://[", "x"):
        assert server.http.post("/api/fal/proxy", headers={"x-fal-target-url": target}).status_code == 412


def test_a_job_runs_through_the_proxy_from_submit_to_result(server, image):
    def call(method: str, url: str, **given: object):
        return server.http.request(method, "/api/fal/proxy", headers={"x-fal-target-url": url}, **given)

    submitted = call("POST", f"https://queue.fal.run/{ENDPOINT}", json={"prompt": "a", "image_url": image})
    assert submitted.status_code == 200
    job = submitted.json()
    assert job["status_url"] == f"https://queue.fal.run/{APP}/requests/{job['request_id']}/status"
    while (status := call("GET", job["status_url"] + "?logs=1")).status_code == 202:
        assert isinstance(status.json()["logs"], list)
    result = call("GET", job["response_url"])
    assert result.status_code == 200
    assert result.json()["video"]["url"].startswith(server.url)
    run = call("POST", f"https://fal.run/{ENDPOINT}", json={"prompt": "a", "image_url": image})
    assert run.status_code == 200


def test_fals_own_names_choose_the_role(server, image):
    given = {"prompt": "a", "image_url": image}
    run = server.http.post(f"/{ENDPOINT}", json=given, headers={"host": "fal.run"})
    assert run.json()["video"]["url"].startswith("http://fal.run/files/")
    submitted = server.http.post(f"/{ENDPOINT}", json=given, headers={"host": "queue.fal.run"}).json()
    assert submitted["response_url"] == f"http://queue.fal.run/{APP}/requests/{submitted['request_id']}"


@pytest.mark.parametrize("path", ["/", "/nothing", "/rest/nothing", "/cdn/upload", "/api/x", "/health/x", "//"])
def test_an_unknown_path_is_404_with_a_request_id(server, path):
    answer = server.http.post(server.url + path, json={})
    assert answer.status_code == 404
    assert answer.headers["x-fal-request-id"]
    assert answer.headers["x-fal-retryable"] == "false"
    assert answer.headers["x-fal-needs-retry"] == "0"
    assert "detail" in answer.json()


HEADERS = {
    "authorization": "Key a:b",
    "user-agent": "@fal-ai/client/1.10.1",
    "accept": "text/event-stream",
    "x-fal-queue-priority": "normal",
    "x-fal-request-timeout": "100.0",
    "x-fal-runner-hint": "any",
    "x-fal-no-retry": "1",
    "x-fal-retry-config": '{"x": 1}',
    "x-app-fal-disable-fallback": "true",
    "x-fal-store-io": "0",
    "x-fal-tags": "a,b",
    "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60, "initial_acl": {"default": "allow"}}',
    "x-fal-object-lifecycle": "not json",
    "x-fal-cdn-token": "t",
    "x-app-fal-can-disable-filter": "1",
}


@pytest.mark.parametrize("role", ["run", "queue"])
def test_every_header_that_clients_send_is_accepted_and_may_be_sent_by_pages(server, image, role):
    path = f"/{role}/{ENDPOINT}"
    assert server.http.post(path, json={"prompt": "a", "image_url": image}, headers=HEADERS).status_code == 200
    origin = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    allowed = server.http.options(path, headers=origin).headers["access-control-allow-headers"].split(", ")
    assert set(HEADERS) - {"user-agent"} <= set(allowed)


def test_every_answer_has_a_request_id(server, image):
    job = server.submit(prompt="a", image_url=image)
    server.wait(job)
    file = server.http.get(job["response_url"]).json()["video"]["url"]
    etag = server.http.get(file).headers["etag"]
    origin = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    answers = {
        200: [
            server.http.get(job["status_url"]),
            server.http.get(f"{job['status_url']}/stream"),
            server.http.get(job["response_url"]),
            server.http.get(file),
            server.http.head(file),
            server.http.get("/health"),
            server.http.post("/rest/storage/upload/initiate", json={}),
            server.http.post("/files/upload", content=b"x"),
        ],
        204: [server.http.options(f"/{ENDPOINT}", headers=origin)],
        206: [server.http.get(file, headers={"range": "bytes=0-1"})],
        304: [server.http.get(file, headers={"if-none-match": etag})],
        400: [server.http.put(job["cancel_url"]), server.http.post("/api/fal/proxy")],
        403: [server.http.get("/health", headers={"origin": "https://evil.example"})],
        404: [server.http.get("/nothing"), server.http.get(f"/{APP}/requests/1/status")],
        405: [server.http.get(f"/{ENDPOINT}")],
        412: [server.http.post("/api/fal/proxy", headers={"x-fal-target-url": "x"})],
        416: [server.http.get(file, headers={"range": "bytes=99999999-"})],
        422: [server.run(prompt="a")],
    }
    for status, those in answers.items():
        for answer in those:
            assert answer.status_code == status, answer.url
            assert len(answer.headers["x-fal-request-id"]) == 36, answer.url
            if status >= 400:
                assert answer.headers["x-fal-retryable"] == "false"
                assert answer.headers["x-fal-needs-retry"] == "0"
    ids = [answer.headers["x-fal-request-id"] for answer in answers[200][:3]]
    assert ids == [job["request_id"]] * 3


def test_behind_a_proxy_of_this_machine_addresses_carry_the_scheme_that_it_names(server, image):
    headers = {"x-forwarded-proto": "https", "host": "localhost"}
    answer = server.http.post(f"/queue/{ENDPOINT}", json={"prompt": "a", "image_url": image}, headers=headers)
    assert answer.json()["status_url"].startswith(f"https://localhost/queue/{APP}/requests/")


RUBBISH = [b"\xff\xfe", b"\xc3\xa9", b"%00", b"x" * 5000, b"'\"<>{}", b"[::1", b"a:b:c", b"-1", b"NaN", b"a\tb"]


@pytest.mark.parametrize("rubbish", RUBBISH, ids=repr)
def test_rubbish_in_headers_and_addresses_is_no_fault_of_the_server(server, rubbish):
    names = [*HEADERS, "host", "origin", "x-fal-target-url", "content-type", "x-fal-file-name", "range", "if-range"]
    for name in names:
        given = [("host", b"127.0.0.1"), (name, rubbish)] if name != "host" else [("host", rubbish)]
        for method, path in (("POST", f"/{ENDPOINT}"), ("POST", "/files/upload"), ("GET", "/files/0/x")):
            answer = server.http.request(method, path, headers=given, content=b"")
            assert answer.status_code < 500, (name, answer.text)
    text = rubbish.decode("latin-1")
    for path in (f"/queue/{ENDPOINT}", f"/{APP}/requests/1/status", "/files/0/x"):
        answer = server.http.get(path, params={"fal_webhook": text, "fal_max_queue_length": text, "logs": text})
        assert answer.status_code < 500


def test_a_wrong_method_is_405_and_is_told_the_right_one(server):
    answer = server.http.get(f"/{ENDPOINT}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_no_folder_is_listed_and_no_other_file_is_read(server, image):
    url = server.run(prompt="a", image_url=image).json()["video"]["url"]
    file_id, name = url.split("/")[-2:]
    paths = [
        "",
        "/",
        f"/{file_id}",
        f"/{file_id}/",
        f"/{file_id[:-1]}/{name}",
        f"/{file_id}/other.mp4",
        "/../ltxd.sqlite3",
    ]
    paths += [
        f"/{file_id}/%2e%2e%2f%2e%2e%2fltxd.sqlite3",
        "/%2e%2e/ltxd.sqlite3",
        f"/{file_id[:2]}/{file_id}",
        "/*/*",
    ]
    for path in paths:
        answer = server.http.get(f"{server.url}/files{path}")
        assert answer.status_code == 404, path
        assert "detail" in answer.json()
