"""Backbones, the attention-pooling head and its checkpoints: plain PyTorch, no Ray."""
