"""The stages of the lifecycle, one module each."""
