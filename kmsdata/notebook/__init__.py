"""Sign in from a notebook or a terminal."""
