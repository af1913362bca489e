# The service for CPU and GPU from one image: torch from PyPI carries its CUDA libraries with it, so that the host needs
# no more than a driver and the NVIDIA container toolkit.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
# The pinned dependencies change seldom and weigh gigabytes: a layer of their own, before the code.
COPY docker/requirements.txt /build/requirements.txt
RUN /opt/venv/bin/pip install --require-hashes -r /build/requirements.txt
COPY pyproject.toml README.md LICENSE /build/
COPY model /build/model
COPY service /build/service
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation /build

FROM python:${PYTHON_VERSION}-slim
LABEL org.opencontainers.image.title="faster-rcnn-service" \
      org.opencontainers.image.description="POST an image, get boxes, labels and scores" \
      org.opencontainers.image.licenses="MIT"
RUN useradd --uid 10001 --create-home --home-dir /var/lib/frcnn --shell /usr/sbin/nologin frcnn \
    && mkdir /var/lib/frcnn/cache \
    && chown frcnn:frcnn /var/lib/frcnn/cache
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TORCH_HOME=/var/lib/frcnn/cache \
    FRCNN_HOST=0.0.0.0 \
    FRCNN_PORT=8000
USER 10001:10001
WORKDIR /var/lib/frcnn
VOLUME /var/lib/frcnn/cache
EXPOSE 8000
# Loading takes seconds, the first fetching of weights minutes; until then the service answers 503.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"FRCNN_PORT\"]}/readyz', timeout=4)"]
# Exec form: SIGTERM reaches the service, which finishes what it accepted.
ENTRYPOINT ["frcnn"]
CMD ["serve"]
