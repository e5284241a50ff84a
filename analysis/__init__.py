"""Pure numerics on rows: tables, laws, fits, intervals, figures and the report. No Ray, no torch."""
