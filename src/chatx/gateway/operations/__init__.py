"""What operators ask of a server: health, figures, rooms."""
