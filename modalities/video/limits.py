"""What may be asked of a video model; nothing here imports torch, so that servers may know it as well."""

PROMPT_CHARACTERS = 2000
"""More than UMT5's 512 tokens hold of most texts; longer input is a mistake, not a prompt."""
