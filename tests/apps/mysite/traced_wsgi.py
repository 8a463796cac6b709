"""A wsgi.py with the Python door, twice: code that is imported again must do no harm."""

import os

import mackerel_otel_server
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

mackerel_otel_server.instrument()
mackerel_otel_server.instrument()

application = get_wsgi_application()
