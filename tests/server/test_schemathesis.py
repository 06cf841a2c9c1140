"""Requests that nobody here thought of, made by schemathesis from the server's own OpenAPI document."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.schema import ENDPOINT

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


def conform(server, image: str, folder: Path, *, examples: int, seconds: int) -> None:
    """Fails with what schemathesis says if an answer is a 5xx or not as the document has it."""
    document = server.http.get("/api/openapi/queue/openapi.json", params={"endpoint_id": ENDPOINT}).json()
    # why: with invented addresses no job would ever end well
    address = document["components"]["schemas"]["Ltx23QualityImageToVideoInput"]["properties"]["image_url"]
    address |= {"examples": [image], "enum": [image, "", "http://127.0.0.1:9/", "data:image/png;base64,eA=="]}
    # why: with invented ids nothing would ever be found
    document["paths"][f"/{ENDPOINT}"]["post"]["responses"]["200"]["links"] = {
        f"{method} {path}": {
            "operationRef": f"#/paths/{path.replace('/', '~1')}/{method}",
            "parameters": {"request_id": "$response.body#/request_id"},
        }
        for path, item in document["paths"].items()
        for method in item
        if path != f"/{ENDPOINT}"
    }
    path = folder / "openapi.json"
    path.write_text(json.dumps(document))
    options = [
        f"--url={server.url}/queue",
        f"--checks={','.join(CHECKS)}",
        f"--max-examples={examples}",
        "--seed=1",
        "--no-color",
        "--no-shrink",
        "--header=Authorization: Key x",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_answer_is_a_server_error_or_against_the_document(server, image, tmp_path):
    conform(server, image, tmp_path, examples=10, seconds=250)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_none_is_in_a_long_run_either(server, image, tmp_path):
    conform(server, image, tmp_path, examples=1500, seconds=3500)
