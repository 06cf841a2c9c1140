"""What an operator deploys is well formed, and keeps what the container promises."""

import json
import re
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from server.egress import METADATA, PRIVATE
from server.routes.health import PATIENCE_SECONDS
from server.settings import Settings
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


LATITUDE = 15  # docs/operations.md, Drain
TEXTS = [ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / "deploy/README.md", ROOT / "docs/operations.md", *FILES]


def settings_of(name, monkeypatch):
    """The settings of the pods of one deployment, read as the server reads them."""
    literals = next(d for n, d in DOCUMENTS if n == "kustomization.yaml")["configMapGenerator"][0]["literals"]
    for variable, value in [pair.split("=", 1) for pair in literals]:
        monkeypatch.setenv(variable, value)
    for variable in PODS[name]["containers"][0].get("env", []):
        monkeypatch.setenv(variable["name"], variable["value"])
    return Settings()


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_a_setting(path):
    named = set(re.findall(r"\bLTX_[A-Z_]+\b", path.read_text()))
    assert named <= {f"LTX_{setting.upper()}" for setting in Settings.model_fields}


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


@pytest.mark.parametrize("name", ["ltxd-api", "ltxd-worker"])
def test_a_node_of_the_manifests_is_what_its_name_says_and_listens_where_it_is_asked(name, monkeypatch):
    settings = settings_of(name, monkeypatch)
    [container] = PODS[name]["containers"]
    assert f"ltxd-{settings.role}" == name
    assert (settings.host, settings.port, settings.tls_port) == (
        "0.0.0.0",  # noqa: S104 -- in the container
        container["ports"][0]["containerPort"],
        0,
    )
    service = next(d for _, d in DOCUMENTS if d["kind"] == "Service")["metadata"]["name"]
    assert {service, f"{service}.ltxd.svc"} <= set(settings.trusted_hosts)


def test_a_worker_may_finish_its_job_before_it_is_killed(monkeypatch):
    drain = settings_of("ltxd-worker", monkeypatch).drain_timeout
    assert PODS["ltxd-worker"]["terminationGracePeriodSeconds"] >= drain + LATITUDE
    # a node without jobs has none to finish
    assert PODS["ltxd-api"]["terminationGracePeriodSeconds"] >= LATITUDE


def test_a_worker_may_load_its_model_before_it_is_taken_for_dead(monkeypatch):
    settings = settings_of("ltxd-worker", monkeypatch)
    probe = PODS["ltxd-worker"]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > settings.load_timeout


@pytest.mark.parametrize("name", ["ltxd-api", "ltxd-worker"])
def test_a_probe_waits_longer_than_health_does(name):
    [container] = PODS[name]["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["timeoutSeconds"] > PATIENCE_SECONDS
        assert container[probe]["httpGet"]["path"] in ("/health/live", "/health/ready")
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"


def test_the_way_out_leads_to_no_private_network_and_no_metadata_service_of_a_cloud():
    policy = next(d for _, d in DOCUMENTS if d["kind"] == "NetworkPolicy")
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule["to"] if "ipBlock" in to]
    closed = [ip_network(text) for block in blocks for text in block["except"]]
    assert [block["cidr"] for block in blocks] == ["0.0.0.0/0"]
    for network in (*PRIVATE, *METADATA):
        if network.version == 4:
            assert any(network.subnet_of(one) for one in closed), network


def test_the_image_writes_only_to_its_volumes():
    text = (ROOT / "Dockerfile").read_text()
    volumes = json.loads(re.search(r"^VOLUME (.*)$", text, re.MULTILINE)[1])
    folders = re.findall(r"\b(?:LTX_DATA|XDG_CACHE_HOME|HF_HOME|TRITON_CACHE_DIR|TORCHINDUCTOR_CACHE_DIR)=(\S+)", text)
    assert len(folders) == 5
    assert all(any(folder == volume or folder.startswith(f"{volume}/") for volume in volumes) for folder in folders)


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
    drain = int(service["environment"]["LTX_DRAIN_TIMEOUT"])
    assert int(service["stop_grace_period"].rstrip("s")) >= drain + LATITUDE
    written = {volume.split(":")[1] for volume in service["volumes"]} | set(service["tmpfs"])
    assert written == {"/data", "/data/models", "/cache", "/tmp"}  # noqa: S108 -- in the container
