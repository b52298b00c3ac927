"""Training data: files of many formats into rows of one kind, and what is to be known of them before a model is loaded. No torch."""
