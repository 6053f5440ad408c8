"""The data set folder: encoded rows written as Parquet shards, and read back as batches."""
