"""Why a result stands where it stands: the parts of its score, its clip's frames, and what the store says now."""
