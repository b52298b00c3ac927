"""A teacher that is paid by the token: its requests, the ledger of its answers, the budget, and what becomes of the answers. Torch-free."""
