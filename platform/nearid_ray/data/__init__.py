"""Datasets on disk or S3: the store, plans and shards, importers, masks and images."""
