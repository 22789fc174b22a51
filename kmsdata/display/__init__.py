"""Results and progress, as text, HTML and JSON."""
