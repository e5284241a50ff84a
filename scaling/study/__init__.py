"""What is declared: the study, its plan, its data and its store."""
