"""What uWSGI is going to do with its ini file."""
