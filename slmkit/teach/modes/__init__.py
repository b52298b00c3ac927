"""One file per mode of distill. A mode is functions of a Job:

    stages(job) -> functions that give requests, one after another; each is carried out before the next is asked for
    made(job) -> the rows in order, with why one is missing; read from the ledger alone, so it can be gone through again
    ROWS -> what its rows are, in words for the card

Both are deterministic: which requests there are depends on the config, the prompts, and the answers of earlier stages.
"""
