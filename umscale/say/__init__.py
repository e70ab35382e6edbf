"""Numbers, estimates and laws in words."""
