"""What a device is, what a model costs on it, and the plan that fits.

Everything here is a frozen value or a pure function. Nothing here touches disk, network, clock or a GPU, and nothing
imports torch or an MQTT client.
"""
