import os
import sys

import mackerel_otel_server


def main():
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

    mackerel_otel_server.instrument()

    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
