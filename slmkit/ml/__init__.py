"""The torch side: data into tokens, models in and out of memory, training, quantizing, scoring.

Nothing here knows a recipe, a store or a plan. Steps import it inside `run()` only; `rows` alone is free of torch, so
that broken data is found before anything heavy is loaded.
"""
