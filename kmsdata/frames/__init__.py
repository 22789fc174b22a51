"""Encrypted columns in pandas and Arrow."""
