"""Published figures of devices and models, as small files with their sources, and what reads them."""
