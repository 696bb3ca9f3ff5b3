"""What a run will cost, before anything is started."""
