"""The commands, by what they work on. Each module adds its own to the parser; what is heavy is imported when one runs."""
