"""What a log under the rooms costs, beside the same rows written by hand."""
