"""Token cache and pooled embeddings of a frozen backbone."""
