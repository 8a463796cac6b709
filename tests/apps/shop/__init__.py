"""A Flask application whose views import the application object, as many do."""

from flask import Flask

app = Flask(__name__)

from shop import views  # noqa: E402, F401
