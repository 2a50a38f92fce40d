# One image for every node; the configuration comes from HOLDFAST_ variables.
FROM python:3.11-slim AS build
WORKDIR /source
RUN python -m venv /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml README.md LICENSE ./
COPY erasure erasure
COPY iam iam
COPY locks locks
COPY node node
# A wheel, not the source tree: what runs is what is tested.
RUN pip install .

FROM python:3.11-slim
LABEL org.opencontainers.image.title="Holdfast" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/holdfast /opt/holdfast
ENV PATH=/opt/holdfast/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# New named volumes take over the owner of these directories, so the node needs no root.
RUN groupadd --system --gid 1500 holdfast \
 && useradd --system --uid 1500 --gid holdfast --home-dir /data --shell /usr/sbin/nologin holdfast \
 && mkdir -p /data/disk1 /data/disk2 /data/disk3 /data/disk4 \
 && chown -R holdfast:holdfast /data
USER holdfast
WORKDIR /data
EXPOSE 9000 9001 9002
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["holdfast", "healthcheck"]
ENTRYPOINT ["holdfast"]
CMD ["serve"]
