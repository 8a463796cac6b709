"""The far end of `receive`, `demo` and the tests, and its views: trees, lines of JSON, a page."""
