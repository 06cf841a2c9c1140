"""The snippets of fal's model page for this endpoint, unchanged but for the image's address."""

import ast
import json
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

SNIPPETS = Path(__file__).parent / "seed_page"
IMAGE = "https://storage.googleapis.com/falserverless/example_inputs/ltxv-2-i2v-input.jpg"
PROMPT = "A woman stands still amid a busy neon-lit street at night."
PHOTO = Path(__file__).parents[2] / "examples/photos/astronaut.jpg"
SIZE = (512, 288)


@pytest.fixture
def snippet(photo):
    """The page's own text in one language, with our photo."""

    def read(language: str) -> str:
        text = (SNIPPETS / f"{language}.txt").read_text()
        assert text.count(IMAGE) == 1
        return text.replace(IMAGE, photo)

    return read


@pytest.fixture
def is_the_promised_clip(opened):
    """Checks an output that was asked for with all defaults."""

    def check(output: dict) -> None:
        assert output["prompt"].startswith(PROMPT)
        clip = opened(output, size=SIZE, num_frames=121)
        assert clip.rms > 0.01
        luma = clip.pictures.astype(np.float32).mean(axis=-1)
        photo = _photo()
        # the photo's large shapes are still there after a dolly, and no frame is blank or jumps
        assert _alike(luma[0], photo) > 0.9
        assert all(frame.std() > 10 for frame in luma)
        assert min(_alike(a, b) for a, b in pairwise(luma)) > 0.8
        assert np.abs(luma[0] - luma[-1]).mean() > 2

    return check


def test_the_python_snippet_works_with_environment_variables_alone(server, snippet, is_the_promised_clip):
    told = server.client([sys.executable, "-"], stdin=snippet("python"), **server.client_env)
    *logs, result = told.splitlines()
    assert logs
    output = ast.literal_eval(result)
    assert output["video"]["url"].startswith(f"https://127.0.0.1:{server.tls_port}/files/")
    is_the_promised_clip(output)


@pytest.mark.full
@pytest.mark.usefixtures("curl")
def test_the_curl_snippet_works_where_its_host_leads_here(server, snippet, is_the_promised_clip, tmp_path):
    bundle = server.client_env["SSL_CERT_FILE"]
    lines = [f'connect-to = "fal.run:443:127.0.0.1:{server.tls_port}"', f'cacert = "{bundle}"', "silent", "show-error"]
    (tmp_path / ".curlrc").write_text("\n".join(lines))
    told = server.client(["sh"], stdin=snippet("curl"), FAL_KEY="any", CURL_HOME=str(tmp_path))
    output = json.loads(told)
    assert output["video"]["url"].startswith("https://fal.run/files/")
    is_the_promised_clip(output)


@pytest.mark.full
def test_the_javascript_snippet_works_through_proxy_url(server, node, proxy, snippet, is_the_promised_clip):
    command = [node, "--import", "./proxy.mjs", "--import", "./print_json.mjs", "--input-type=module", "-"]
    *logs, result, request_id = server.client(command, stdin=snippet("javascript"), PROXY=proxy).splitlines()
    assert logs
    assert len(request_id) == 36
    output = json.loads(result)
    assert output["video"]["url"].startswith(f"http://127.0.0.1:{server.port}/files/")
    is_the_promised_clip(output)


def _photo() -> np.ndarray:
    with av.open(PHOTO) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24").astype(np.float32).mean(axis=-1)


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
