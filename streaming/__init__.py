"""The live runtime, headless."""
