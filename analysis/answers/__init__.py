"""What the laws say: forecasts and their backtests, checks, why the curve stops, and how to spend compute."""
