"""The silo's side: a small daemon that measures, checks and reports, and a trainer process that learns."""
