"""Training the head: losses, the pool of positives, what a step reads, the loop and its Ray Train side."""
