"""The report of a study: findings, sentences, tables, figures, and the page."""
