"""The decoder, how it starts and how its sizes and rates scale."""
