"""Encrypt and decrypt files and datasets of any size, column by column."""
