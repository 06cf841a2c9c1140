# One program for every role: `ltxd serve` with LTX_ROLE=all, api or worker. Weights and data lie on volumes, never in
# the image. Any Debian 12 with Python 3.11 serves as the base; torch's own package brings CUDA's user space.
# Run it read-only, as compose.yaml and deploy/kubernetes do.
ARG BASE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/ltxd && /opt/ltxd/bin/pip install -q "pip==26.3"
WORKDIR /src
# the dependencies first: gigabytes that change rarely
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
      > dependencies.txt \
 && /opt/ltxd/bin/pip install -q -c constraints.txt -r dependencies.txt
COPY README.md LICENSE NOTICE ./
COPY server server
COPY pipeline pipeline
COPY weights weights
RUN /opt/ltxd/bin/pip install -q --no-deps .

# hadolint ignore=DL3006
FROM ${BASE}
LABEL org.opencontainers.image.title="ltxd" \
      org.opencontainers.image.description="Self-hosted server for LTX-2.3 image to video that speaks fal's protocol" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3008
RUN apt-get update -qq \
 && apt-get install -qq -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 ltxd \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin ltxd \
 && install -d -o ltxd -g ltxd -m 0750 /data /data/models /cache
COPY --from=build /opt/ltxd /opt/ltxd
ENV PATH=/opt/ltxd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LTX_DATA=/data \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/data", "/data/models", "/cache"]
USER 10001:10001
EXPOSE 8000 8443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('LTX_PORT', '8000')}/health/live\", timeout=4)"]
ENTRYPOINT ["tini", "--", "ltxd"]
CMD ["serve"]
