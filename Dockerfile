# docker build -t dmoe . ; docker run -v ./models:/models:ro -v ./token:/run/token:ro -p 8000:8000 dmoe
FROM python:3.11-slim

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
# torch is needed to train and export, not to serve; the CPU build is the small one.
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt '.[serve]' \
    && rm -rf /build \
    && useradd --system --no-create-home dmoe

WORKDIR /
USER dmoe
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/live')"]
ENTRYPOINT ["dmoe", "serve", "--host", "0.0.0.0"]
CMD ["/models/current", "--token-file", "/run/token"]
