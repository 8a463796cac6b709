"""A system without /dev/shm."""

import os

_access = os.access


def access(path, *args, **kwargs):
    return str(path) != "/dev/shm" and _access(path, *args, **kwargs)


os.access = access
