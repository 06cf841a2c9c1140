"""What an operator deploys is well formed, and keeps what the container promises."""

import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from server.tables import JOBS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
KUBERNETES = "1.37"
CUSTOM = {"Kustomization", "PodMonitor", "ScaledObject", "TriggerAuthentication"}
FILES = sorted(FOLDER.glob("*.yaml"))
DOCUMENTS = [(path.name, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]
PODS = {
    document["metadata"]["name"]: document["spec"]["template"]["spec"]
    for _, document in DOCUMENTS
    if document["kind"] in {"Deployment", "Job"}
}


def drain_seconds():
    literals = next(d for n, d in DOCUMENTS if n == "kustomization.yaml")["configMapGenerator"][0]["literals"]
    return int(dict(pair.split("=") for pair in literals)["LTX_DRAIN_TIMEOUT"])


def test_hadolint_has_nothing_to_say_of_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


@pytest.mark.parametrize("document", [d for _, d in DOCUMENTS], ids=[f"{n}-{d['kind']}" for n, d in DOCUMENTS])
def test_a_manifest_is_what_kubernetes_expects(document):
    if document["kind"] in CUSTOM:
        assert document["apiVersion"].count("/") == 1
        return
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_every_manifest_is_in_the_kustomization():
    listed = next(d for n, d in DOCUMENTS if n == "kustomization.yaml")["resources"]
    assert sorted(listed) == sorted(p.name for p in FOLDER.glob("*.yaml") if p.name != "kustomization.yaml")


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_read_only_without_root_and_without_capabilities(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        written = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {"/tmp"} < written  # noqa: S108 -- in the container
        assert written & {"/data", "/data/models"}


def test_a_worker_may_finish_its_job_before_it_is_killed():
    assert PODS["ltxd-worker"]["terminationGracePeriodSeconds"] > drain_seconds()


def test_the_scaler_counts_by_a_column_and_words_that_the_store_has():
    scaler = next(d for _, d in DOCUMENTS if d["kind"] == "ScaledObject")
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    assert f"FROM {JOBS.name} WHERE {JOBS.c.status.name} IN ('IN_QUEUE', 'IN_PROGRESS')" in query
    assert scaler["spec"]["scaleTargetRef"]["name"] in PODS


def test_compose_reserves_a_gpu_and_writes_nowhere_but_to_its_volumes():
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["ltxd"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert int(service["stop_grace_period"].rstrip("s")) > int(service["environment"]["LTX_DRAIN_TIMEOUT"])
