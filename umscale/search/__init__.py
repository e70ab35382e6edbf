"""Guided search: Optuna over a study's dimensions, on the trainer and the store of a sweep."""
