"""What is declared: the study, its data and its store."""
