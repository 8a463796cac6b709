"""What Gunicorn is going to do with its configuration."""
