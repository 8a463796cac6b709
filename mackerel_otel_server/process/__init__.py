"""What all parts may use: the pid, threads, the log, hooks at imports, callables that imitate others."""
