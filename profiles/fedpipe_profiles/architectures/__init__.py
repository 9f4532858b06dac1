"""The shape of a model from its config.json alone: no tensor, no module, no library that has one."""
