"""A page that shows a sweep as it goes."""
