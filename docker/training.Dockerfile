# Training: interactions in, a bundle out. From the root of the checkout:
#   docker build --file docker/training.Dockerfile --tag towerbridge-training .
# docs/deploying.md says how to run it.

FROM python:3.11-slim-bookworm AS packages
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# torch's CPU build, without gigabytes of CUDA: training runs on CPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-deps --constraint constraints.txt --index-url "$TORCH_INDEX" torch
COPY pyproject.toml README.md LICENSE ./
COPY client client
RUN pip install --constraint constraints.txt ".[cpu,training,demo]"

FROM python:3.11-slim-bookworm AS training
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    TMPDIR=/work \
    HF_HUB_OFFLINE=1
RUN groupadd --gid 10001 towerbridge \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /work --shell /usr/sbin/nologin towerbridge \
    && install --directory --owner 10001 --group 10001 --mode 0755 /work
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY index index
COPY training training
WORKDIR /work
ENV PYTHONPATH=/app
USER 10001:10001
VOLUME ["/work"]
STOPSIGNAL SIGTERM
# A run that ends says by its exit status how it went.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
