# The server. From the root of the checkout:
#   docker build --file docker/server.Dockerfile --tag towerbridge-server .
#   docker build --file docker/server.Dockerfile --tag towerbridge-server:gpu --build-arg DEVICE=gpu .
# docs/deploying.md says how to run it.

# cpu or gpu: which base, which extra of pyproject.toml, and which device the server computes on.
ARG DEVICE=cpu

# g++ stays in the image: the user tower and the index's lists are compiled for the machine that they run on.
FROM python:3.11-slim-bookworm AS base-cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
ENV TOWERBRIDGE__ENGINE__DEVICE=cpu

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS base-gpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV TOWERBRIDGE__ENGINE__DEVICE=cuda

FROM base-${DEVICE} AS packages
ARG DEVICE
# torch's CPU build, without gigabytes of CUDA that a CPU has no use for. Not used for gpu.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY constraints.txt ./
RUN if [ "$DEVICE" = cpu ]; then pip install --no-deps --constraint constraints.txt --index-url "$TORCH_INDEX" torch; fi
COPY pyproject.toml README.md LICENSE ./
COPY client client
RUN pip install --constraint constraints.txt ".[$DEVICE,traces]"

FROM base-${DEVICE} AS server
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/towerbridge \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/towerbridge/inductor
# To other machines the server listens only with certificate and keys, or if security.insecure says so.
ENV TOWERBRIDGE__BUNDLE=/bundles/live \
    TOWERBRIDGE__DATA=/var/lib/towerbridge/state \
    TOWERBRIDGE__ERASURE__KEY_FILE=/var/lib/towerbridge-keys/erasure.key \
    TOWERBRIDGE__LISTEN__HOST=0.0.0.0 \
    TOWERBRIDGE__LISTEN__PORT=50051 \
    TOWERBRIDGE__METRICS__HOST=0.0.0.0 \
    TOWERBRIDGE__METRICS__PORT=9464 \
    TOWERBRIDGE__LOGS__FORMAT=json
RUN groupadd --gid 10001 towerbridge \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/towerbridge --shell /usr/sbin/nologin towerbridge \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/towerbridge /var/lib/towerbridge-keys \
    && install --directory /bundles
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY index index
COPY server server
USER 10001:10001
VOLUME ["/var/lib/towerbridge", "/var/lib/towerbridge-keys"]
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Without TLS; with it, the probe needs --ca (see compose.yaml).
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m --start-interval=2s --retries=3 \
    CMD ["python", "-m", "server.health"]
# So that the image runs the other commands too: server.journal, server.keys, server.release.
ENTRYPOINT ["python", "-m"]
CMD ["server"]
