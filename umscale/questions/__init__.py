"""One file a question: what it needs, its answer."""
