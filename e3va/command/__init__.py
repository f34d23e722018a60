"""Command lines: arguments, configs by name, checks before building, processes, measured rows."""
