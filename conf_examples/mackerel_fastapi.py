# Traces of a FastAPI application to Mackerel, from Python:
#     uvicorn mackerel_fastapi:app --workers 2
#     gunicorn -k asgi mackerel_fastapi:app                            Gunicorn 25 and newer
#     gunicorn -k uvicorn_worker.UvicornWorker mackerel_fastapi:app    pip install uvicorn-worker
#
# In the environment:
#     MACKEREL_APIKEY      a Mackerel API key with write permission
#     OTEL_SERVICE_NAME    the name under which Mackerel lists the application
#
# Not needed, and harmless, where the server starts the tracing:
#     gunicorn -c python:mackerel_otel_server.conf -k asgi mysite.main:app

import mackerel_otel_server

# Before FastAPI is imported.
mackerel_otel_server.instrument()

# CHANGE: your application.
from mysite.main import app

# Where app is a plain ASGI middleware around FastAPI's application, with this line its own responses are traced, too:
# app = mackerel_otel_server.trace_asgi(app)
