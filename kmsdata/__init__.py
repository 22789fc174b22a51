"""Column-level encryption for pandas, Arrow and Parquet."""
