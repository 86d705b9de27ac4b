# The first stage lays out what the service runs with: the lock's first part, each file by its hash.
FROM python:3.13-slim AS packages
WORKDIR /build
COPY requirements.txt .
RUN sed '/^# --- tests and checks/,$d' requirements.txt > service.txt \
    && python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r service.txt

FROM python:3.13-slim

# /data is where the embedded SQLite lives when nothing else is configured; mount a volume there.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin scheduler \
    && install --directory --owner=scheduler --group=scheduler /data

COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY migrate.py .
COPY job_scheduler job_scheduler

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DB_URL=sqlite:////data/job_scheduler.db

# By number: Kubernetes cannot tell from a name that it is not root.
USER 10001
EXPOSE 8000

# /livez: the process turns. Not /readyz, since whoever restarts unhealthy containers (Swarm does)
# would end running tasks for an outage of the database, which no restart mends. No proxy is asked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "from urllib import request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/livez', timeout=4)"]

# Exec form: there is no shell in between, so SIGTERM reaches uvicorn and tasks may finish.
STOPSIGNAL SIGTERM
CMD ["uvicorn", "job_scheduler.main:app", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "5"]
