"""The commands, grouped by subject; each module adds its own to the parser and defers heavy imports."""
