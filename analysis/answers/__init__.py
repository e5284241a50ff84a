"""Answers from the laws: forecasts and their backtests, checks, why the curve stops, and how to spend compute."""
