"""The feature set: planned, extracted, written as Parquet shards, verified, inspected."""
