"""Streaming video: the causal transformer, its cache, its rollout and its codec."""
