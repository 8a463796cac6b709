# Traces of a Django project to Mackerel, from Python. This file lies beside manage.py:
#     gunicorn mackerel_django
#
# In the environment:
#     MACKEREL_APIKEY      a Mackerel API key with write permission
#     OTEL_SERVICE_NAME    the name under which Mackerel lists the application
#
# Not needed, and harmless, where the server starts the tracing:
#     gunicorn -c python:mackerel_otel_server.conf mysite.wsgi

import mackerel_otel_server

# Before Django is imported.
mackerel_otel_server.instrument()

# CHANGE: the wsgi.py of your project, which stays as it is.
from mysite.wsgi import application

# ASGI, such as uvicorn mackerel_django:application: this instead of the line above.
# from mysite.asgi import application

# For runserver, these lines in manage.py, at the beginning of main():
#     import mackerel_otel_server
#     mackerel_otel_server.instrument()

# In settings.py:
# - LOGGING may switch off all loggers that exist: the lines of this package arrive nevertheless.
# - CONN_MAX_AGE = 60: with 0, Django's default, each request opens a connection, and the queries that set one up are
#   spans, which are billed.
