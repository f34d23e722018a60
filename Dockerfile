# The tested stack in a container.
#   CPU:     docker build -t e3va .
#   a card:  docker build -t e3va --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu22.04 --build-arg CUDA="8.0 9.0" .
#   run:     docker run --rm -it [--gpus all] -v FOLDER:/data e3va e3va tune /data
# CUDA names the cards that mmcv's kernels are compiled for. The image's CUDA has to be of the version that torch was built
# with (e3va doctor names it). No container was built by us so far: no Docker at hand.
ARG BASE=python:3.11-bookworm
FROM ${BASE}
ARG CUDA=""
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git libgl1 libglib2.0-0 \
    && (command -v python3.11 || apt-get install --yes --no-install-recommends python3.11 python3.11-venv python3.11-dev) \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /e3va
COPY . .
# A torch that is in .venv already is kept; without a card at hand the set-up by itself would take the CPU's.
RUN if [ -n "$CUDA" ]; then \
        python3.11 -m venv .venv && .venv/bin/pip install --no-cache-dir torch==2.13.0 torchvision==0.28.0 \
        && export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST="$CUDA"; \
    fi; \
    bash tools/setup_env.sh && rm -rf /root/.cache/pip
ENV PATH=/e3va/.venv/bin:$PATH
CMD ["e3va", "doctor"]
