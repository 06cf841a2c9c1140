"""Model files: layouts, checkpoints, LoRA fusion, and the demo weights. Knows nothing of plans, requests or HTTP."""
