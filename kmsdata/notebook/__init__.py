"""Signing in from a notebook."""
