import os
import time

from shop import app


@app.route("/pid")
def pid():
    time.sleep(0.1)
    return str(os.getpid())


@app.route("/type")
def kind():
    # Not at the top: this is what a rebound application object breaks.
    from shop import app as imported

    with imported.test_request_context():
        return f"{type(imported).__module__}.{type(imported).__name__}"
