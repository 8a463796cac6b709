# Traces of a Flask application to Mackerel, from Python:
#     gunicorn mackerel_flask:app
#     flask --app mackerel_flask run
#
# In the environment:
#     MACKEREL_APIKEY      a Mackerel API key with write permission
#     OTEL_SERVICE_NAME    the name under which Mackerel lists the application
#
# Not needed, and harmless, where the server starts the tracing:
#     gunicorn -c python:mackerel_otel_server.conf mysite:app

import mackerel_otel_server

# Before Flask is imported.
mackerel_otel_server.instrument()

# CHANGE: your application.
from mysite import app

# An application factory: these two instead of the line above.
# from mysite import create_app
# app = create_app()
