"""Applications whose own code has set up an instrumentation of OpenTelemetry, before or after the application."""

import os

KIND = os.environ["KIND"]


def make():
    if KIND == "flask":
        from opentelemetry.instrumentation.flask import FlaskInstrumentor

        FlaskInstrumentor().instrument()
        from web_flask import app
    elif KIND == "flask app":
        from opentelemetry.instrumentation.flask import FlaskInstrumentor
        from web_flask import app

        FlaskInstrumentor().instrument_app(app, excluded_urls="with-slash")
    elif KIND == "flask middleware":
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
        from web_flask import app

        app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app)
    elif KIND == "middleware":
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
        from web_flask import app

        app = OpenTelemetryMiddleware(app)
    elif KIND == "mounted":
        # Their spans in one application, ours in the other.
        from opentelemetry.instrumentation.flask import FlaskInstrumentor
        from web_falcon import app as falcon
        from web_flask import app as flask
        from werkzeug.middleware.dispatcher import DispatcherMiddleware

        FlaskInstrumentor().instrument_app(flask, excluded_urls="with-slash")
        app = DispatcherMiddleware(flask, {"/falcon": falcon})
    elif KIND == "django":
        from opentelemetry.instrumentation.django import DjangoInstrumentor

        os.environ["DJANGO_SETTINGS_MODULE"] = "web_django.settings"
        DjangoInstrumentor().instrument()
        from web_django.wsgi import application as app
    elif KIND == "django late":
        from opentelemetry.instrumentation.django import DjangoInstrumentor
        from web_django.wsgi import application as app

        DjangoInstrumentor().instrument()
    elif KIND == "falcon":
        from opentelemetry.instrumentation.falcon import FalconInstrumentor

        FalconInstrumentor().instrument()
        from web_falcon import app
    elif KIND == "pyramid":
        from opentelemetry.instrumentation.pyramid import PyramidInstrumentor

        PyramidInstrumentor().instrument()
        from web_pyramid import app
    return app


application = make()
