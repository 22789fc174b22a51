"""Parquet files with encrypted columns."""
