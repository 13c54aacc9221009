"""New data in, guarded upgrade out: what `tenfold update` does."""
