"""The scorer that people use: embeddings, similarity, and the probability of the same identity."""
