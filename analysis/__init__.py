"""Analysis of results rows: tables, laws, fits, intervals, figures and the report. Needs neither Ray nor torch."""
