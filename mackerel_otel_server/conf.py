"""The Gunicorn door: ``gunicorn -c python:mackerel_otel_server.conf mysite.wsgi``.

Gunicorn applies every name of this module that equals one of its settings, so hooks are all there is here.
"""

from mackerel_otel_server.gunicorn import install

install(globals())
