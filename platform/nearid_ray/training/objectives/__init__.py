"""What training can minimise: NearID and the objectives it is compared with, all on one pool, one file a family."""
