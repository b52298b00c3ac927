"""What is optimised: one file per objective. Each has `prepare` (rows into tokens, before a model is loaded) and `trainer`."""
