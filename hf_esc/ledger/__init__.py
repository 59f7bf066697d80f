"""The ledger of an erased model: its records, and whether a checkpoint is what they say."""
