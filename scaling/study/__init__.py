"""Declarations of a study, its data and its store."""
