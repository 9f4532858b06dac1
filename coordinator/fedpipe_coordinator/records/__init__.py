"""A run's folder and its lines: what people find of a run when it is over."""
