"""Dead letters after the fact: reading, reporting and redriving them."""
