"""One request, one server span."""
