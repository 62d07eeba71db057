"""Settings: where they come from, what they may widen, and who has to agree to it."""
