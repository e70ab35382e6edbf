"""A store's numbers in the trackers that people watch: TensorBoard and Weights & Biases."""
