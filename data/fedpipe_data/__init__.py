"""How a silo's files become examples: reading tables, finding fields, holding a part out."""
