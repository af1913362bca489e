# The service for GPU and CPU from one file.
#   docker build -t faster-rcnn-service .                                       NVIDIA GPUs, and CPUs as well
#   docker build --build-arg TORCH_INDEX=ADDRESS -t faster-rcnn-service .       CPUs only, about a fifth of the size
#   docker build --build-arg EXTRA=openvino -t faster-rcnn-service .            with --precision int8
# TORCH_INDEX is the address of a package index with another build of torch. Empty, torch comes from pip's own index: its
# CUDA build, which carries its libraries along, so that the host needs a driver and the NVIDIA container toolkit alone.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS requirements
ARG EXTRA=
COPY docker/requirements*.txt /requirements/
WORKDIR /requirements
# torch and its CUDA libraries apart from the rest, so that a new version of the rest does not move gigabytes.
RUN awk '/^[^ ]/ { file = /^(torch|torchvision|triton|nvidia|cuda)[a-z0-9-]*==/ ? "torch.txt" : "rest.txt" } \
    { print > file }' "requirements${EXTRA:+-$EXTRA}.txt"

FROM python:${PYTHON_VERSION}-slim AS torch
ARG TORCH_INDEX=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
COPY --from=requirements /requirements/torch.txt /requirements/
# Another index has other files than those whose hashes are pinned: there the versions are pinned, and the index is trusted.
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -z "$TORCH_INDEX" ]; then \
        pip install --target /opt/torch --no-deps --require-hashes -r /requirements/torch.txt; \
    else \
        grep -oE '^torch(vision)?==[^ ;]+' /requirements/torch.txt >/requirements/versions.txt \
        && pip install --target /opt/torch --no-deps --index-url "$TORCH_INDEX" -r /requirements/versions.txt; \
    fi
# What only compiling against torch and CUDA needs, and the symbols of functions that nothing links to.
WORKDIR /opt/torch
RUN rm -rf torch/include torch/share torch/bin/protoc* nvidia/*/include \
    && find . -name '*.a' -delete \
    && strip --strip-unneeded torch/lib/libtorch_cpu.so torch/lib/libtorch_python.so

FROM python:${PYTHON_VERSION}-slim AS dependencies
COPY --from=requirements /requirements/rest.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --target /opt/dependencies --no-deps --require-hashes -r /requirements/rest.txt \
    && find /opt/dependencies -depth -type d -name tests -exec rm -r {} +

FROM dependencies AS app
COPY pyproject.toml README.md LICENSE /build/
COPY model /build/model
COPY service /build/service
RUN PYTHONPATH=/opt/dependencies pip install --no-cache-dir --target /opt/app --no-deps --no-build-isolation /build

FROM python:${PYTHON_VERSION}-slim
ARG TORCH_INDEX=
LABEL org.opencontainers.image.title="faster-rcnn-service" \
      org.opencontainers.image.description="POST an image, get boxes, labels and scores" \
      org.opencontainers.image.licenses="MIT"
# tini, as a process 1 that has not set up its handlers yet does not hear SIGTERM. A C compiler on GPUs only: Triton builds
# its launcher with it where it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && if [ -z "$TORCH_INDEX" ]; then set -- gcc libc6-dev; fi \
    && apt-get install -y --no-install-recommends tini "$@" \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /var/lib/frcnn --shell /usr/sbin/nologin frcnn \
    && mkdir /var/lib/frcnn/cache \
    && chown frcnn:frcnn /var/lib/frcnn/cache
# In the order in which they change: what seldom does stays where it is, here and in a registry.
COPY --from=torch /opt/torch /opt/torch
COPY --from=dependencies /opt/dependencies /opt/dependencies
COPY --from=app /opt/app /opt/app
ENV PATH=/opt/app/bin:$PATH \
    PYTHONPATH=/opt/app:/opt/dependencies:/opt/torch \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TORCH_HOME=/var/lib/frcnn/cache \
    TRITON_CACHE_DIR=/var/lib/frcnn/cache/triton \
    FRCNN_HOST=0.0.0.0 \
    FRCNN_PORT=8000 \
    GOMP_SPINCOUNT=2000
# By number, so that Kubernetes can tell that it is not root.
USER 10001:10001
WORKDIR /var/lib/frcnn
# A torch that does not fit its torchvision would be found out when the first picture comes.
RUN ["python", "-c", "import torch, torchvision; torch.ops.torchvision.nms"]
VOLUME /var/lib/frcnn/cache
EXPOSE 8000
# Loading takes seconds, the first fetching of weights minutes; until then the service answers 503. Never by a proxy, which
# Docker may name to every container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-IS", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f'http://127.0.0.1:{os.environ[\"FRCNN_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["tini", "--", "frcnn"]
CMD ["serve"]
