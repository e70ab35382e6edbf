"""Pages from blocks."""
