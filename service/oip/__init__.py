"""The Open Inference Protocol v2 under `/v2`: for clients of KServe, Triton and their like."""
