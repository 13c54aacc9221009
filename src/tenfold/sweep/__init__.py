"""`tenfold batch`: which batch size reaches the target soonest and cheapest, measured on a workload."""
