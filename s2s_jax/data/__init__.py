"""Data: symbols, data sets and batches."""
