"""PEP 3333's other style: the class is the callable, its instance the response."""

import os
import time


class Application:
    def __init__(self, environ, start_response):
        self.environ = environ
        self.start_response = start_response

    def __iter__(self):
        time.sleep(0.1)
        self.start_response("200 OK", [("Content-Type", "text/plain")])
        yield str(os.getpid()).encode()
