"""One file per mode of distill. A mode is two functions of a Job:

    stages(job) -> list of functions that give requests; each is carried out before the next is asked for its requests
    made(job) -> the rows in order, with why one is missing; read from the ledger alone, so it can be gone through again

Both are deterministic: which requests there are depends on the config, the prompts, and the answers of earlier stages.
"""
