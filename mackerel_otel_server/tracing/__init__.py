"""The application becomes spans."""
