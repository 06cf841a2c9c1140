"""The server's settings: read once from the environment (prefix LTX_) and the command line, then passed down."""

import json
import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.recipe import Semantics

HOUR = 3600.0
DAY = 24 * HOUR


def data_home() -> Path:
    """The folder that holds everything unless told otherwise, by the XDG rule."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "ltxd"


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [part.strip() for part in value.split(",") if part.strip()]


def _expanded(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()


LogFormat = Literal["auto", "console", "json"]

Commas = (NoDecode, BeforeValidator(_split))


class Settings(BaseSettings):
    """Every setting of `ltxd serve`. The name of its environment variable is LTX_ and the field's name in capitals.

    Lists are separated by commas, or written as JSON: LTX_ALLOW_PRIVATE_NETWORKS=192.168.0.0/16,10.0.0.0/8.
    """

    model_config = SettingsConfigDict(env_prefix="LTX_", frozen=True, extra="ignore")

    host: str = Field(
        "127.0.0.1", description="Address to listen on. Without keys only a loopback address is accepted."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port for HTTP.")
    tls_port: int = Field(
        8443,
        ge=0,
        le=65535,
        description="Port for HTTPS, with a certificate made at first start; 0 turns it off.",
    )
    proxy_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of the proxy that HTTPS_PROXY may name: it leads fal's names here; 0 turns it off.",
    )
    data: Annotated[Path, AfterValidator(Path.expanduser)] = Field(
        default_factory=data_home,
        description="Folder for the database, files, certificate and models. Default: ~/.local/share/ltxd.",
    )
    database_url: str = Field(
        "",
        description="Database that several nodes share, such as postgresql://user:password@host/name. "
        "Default: SQLite in the data folder.",
    )
    blobs_url: str = Field(
        "",
        description="S3 bucket for files that several nodes share, such as s3://bucket/prefix; endpoint and "
        "credentials are those of AWS_* variables. Default: a folder in the data folder.",
    )
    role: Literal["all", "api", "worker"] = Field(
        "all", description="What this node does: api answers requests, worker does jobs, all does both."
    )
    log_format: LogFormat = Field(
        "auto", description="How the log is written: console, json, or auto for console on a terminal."
    )
    recipe: str = Field("demo", description="Recipe to sample with: a shipped name or a path to a TOML file.")
    semantics: Semantics | Literal["recipe"] = Field(
        "recipe",
        description="What the start image's frame is to the sampler: official, comfy, or what the recipe says.",
    )
    force_safety_checker: bool = Field(
        default=False, description="Checks every clip, whatever enable_safety_checker says."
    )
    safety_classifier: Annotated[Path | None, AfterValidator(_expanded)] = Field(
        None, description="Folder of an image classifier of transformers. Default: the open_nsfw installed along."
    )
    safety_threshold: float = Field(
        0.8, gt=0, le=1, description="Score from 0 to 1 from which a picture counts as not safe."
    )
    device: str = Field("auto", description="Device to generate on: auto, cpu, cuda or cuda:N.")
    residency: Literal["auto", "resident", "evict-text", "fp8", "fp8-evict-text", "stream"] = Field(
        "auto", description="What of the model stays on the device; auto is the first that fits."
    )
    passes_per_call: int = Field(
        0,
        ge=0,
        description="Passes of guidance that go through the transformer at once, at most; 0: as many as the device "
        "has room for, clip by clip.",
    )
    dequantise: bool = Field(
        False, description="Whether weights that a file has in fp8 are turned into the working dtype at loading."
    )
    allow_private_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], *Commas] = Field(
        (),
        description="Private networks (CIDR) that image_url and webhooks may lead into; all others are refused, and "
        "always those where clouds keep secrets.",
    )
    cors_origins: Annotated[tuple[str, ...], *Commas] = Field(
        (), description="Web origins whose pages may call this server. Pages on loopback always may."
    )
    trusted_hosts: Annotated[tuple[str, ...], *Commas] = Field(
        (),
        description="Names this server is called by, beside localhost, IP addresses and fal's own names. Its "
        "certificate is for them too, and for addresses that stand here.",
    )
    max_queue_length: int = Field(1000, ge=1, description="Waiting jobs above which a submit is answered 429.")
    max_queue_bytes: int = Field(
        2_000_000_000, ge=1024, description="Bytes of waiting inputs above which a submit is answered 429."
    )
    min_free_bytes: int = Field(
        500_000_000, ge=0, description="Free bytes of disk below which a submit is answered 429 and no job is begun."
    )
    max_body_bytes: int = Field(72_000_000, ge=1024, description="Largest request body, in bytes.")
    max_upload_bytes: int = Field(500_000_000, ge=1024, description="Largest upload, in bytes.")
    max_image_bytes: int = Field(50_000_000, ge=1024, description="Largest start image, in bytes.")
    fetch_timeout: float = Field(30.0, gt=0, description="Seconds that fetching a start image may take.")
    load_timeout: float = Field(900.0, gt=0, description="Seconds that loading the model may take.")
    text_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds without progress, while the prompt is written and read, after which the generating "
        "process is taken for hung.",
    )
    step_timeout: float = Field(300.0, gt=0, description="The same, for one step of denoising.")
    decode_timeout: float = Field(300.0, gt=0, description="The same, for upsampling, decoding and encoding a part.")
    job_timeout: float = Field(3600.0, gt=0, description="Seconds after its start at which a job fails.")
    lease_seconds: float = Field(
        30.0, gt=0, description="Seconds without a sign of life from a node after which its job waits again."
    )
    max_attempts: int = Field(3, ge=1, description="Times a job is tried when its generating process dies.")
    orphan_seconds: float = Field(
        60.0, ge=0, description="Seconds that a job whose waiting client went away runs on for it to come back."
    )
    heartbeat: bool = Field(
        default=False,
        description="Whether a waiting run answers 200 and blanks after LTX_HEARTBEAT_AFTER, so that clients which "
        "give up after 300 s wait on. What it costs: the status is then 200 even if the job fails.",
    )
    heartbeat_after: float = Field(240.0, gt=0, description="Seconds before the first blank, see LTX_HEARTBEAT.")
    drain_timeout: float = Field(
        30.0, ge=0, description="Seconds that the running job may go on after SIGTERM before it is handed back."
    )
    result_retention: float = Field(
        DAY, gt=0, description="Seconds that results and their files are kept, unless the caller asks otherwise."
    )
    upload_retention: float = Field(
        DAY, gt=0, description="Seconds that uploaded files are kept, unless the caller asks otherwise."
    )
    row_retention: float = Field(30 * DAY, gt=0, description="Seconds that finished jobs are remembered.")

    @property
    def models(self) -> Path:
        """The folder of the models."""
        return self.data / "models"
