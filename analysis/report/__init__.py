"""The report of a study: findings, words, tables, figures, and the page."""
