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
    ],
)
def test_another_page_may_not_drive_the_server(server, headers):
    for method, path in (("POST", f"/{ENDPOINT}"), ("GET", "/health"), ("OPTIONS", f"/queue/{ENDPOINT}")):
        answer = server.http.request(method, path, headers=headers)
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


def test_a_wrong_method_is_405_and_is_told_the_right_one(server):
    answer = server.http.get(f"/{ENDPOINT}")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
