"""Everything that tests what ships: unit, integration, chaos, fuzz, formats and soak, and what they share."""
