"""The commands, grouped by subject. Each module adds its own to the parser; heavy imports happen only when a command runs."""
