"""What is declared, run and recorded."""
