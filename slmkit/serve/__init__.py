"""`slmkit serve`: an OpenAI-compatible server over a model and its adapters. The app speaks HTTP, the bench writes."""
