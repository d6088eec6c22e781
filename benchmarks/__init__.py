"""What chatx costs, measured beside its references in the same run: `make bench`."""
