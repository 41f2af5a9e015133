"""Plans in, tokens out: everything that touches tensors between the scheduler and the mathematics."""
