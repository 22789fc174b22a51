"""Reports and progress bars, as text, HTML and JSON."""
