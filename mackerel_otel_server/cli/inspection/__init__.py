"""What ``check`` looks at, and what it finds there."""
