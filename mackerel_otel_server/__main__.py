"""``python -m mackerel_otel_server`` is the command line ``mackerel-otel-server``."""

import sys

from mackerel_otel_server.cli import main

if __name__ == "__main__":
    sys.exit(main())
