# The server with its demo weights, on a CPU. A first version that nobody has built yet: runs as a plain user, has no GPU libraries chosen for it,
# and as there are no keys yet it listens on loopback alone:
#   docker build -t ltxd . && docker run --rm --network host ltxd
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY server server
COPY pipeline pipeline
COPY weights weights
RUN pip install --no-cache-dir -c constraints.txt . \
 && useradd --create-home ltxd \
 && install -d -o ltxd /data

USER ltxd
ENV LTX_DATA=/data
RUN ltxd weights build-demo
ENTRYPOINT ["ltxd"]
CMD ["serve"]
