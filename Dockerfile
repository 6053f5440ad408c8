# docker build -t dmoe . ; docker run -v ./models:/models:ro -v ./token:/run/token:ro -p 8000:8000 dmoe
FROM python:3.11-slim

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
# What serving imports and no more: torch, numba, duckdb, scikit-learn and matplotlib train and draw.
RUN pip install --no-cache-dir --upgrade 'pip>=25.1'
RUN pip install --no-cache-dir -c constraints.txt --group server
RUN pip install --no-cache-dir --no-deps .
RUN rm -rf /build && useradd --system --no-create-home dmoe

WORKDIR /
USER dmoe
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/live')"]
ENTRYPOINT ["dmoe", "serve", "--host", "0.0.0.0"]
CMD ["/models/current", "--token-file", "/run/token"]
