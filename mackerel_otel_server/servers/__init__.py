"""What each host server does to a process, and what this package does then: one file a host.

The first lines of each say how tracing is registered there, when it starts and stops, and whether the host kills.
"""
