"""Phoenix's long-polling, for both shells."""
