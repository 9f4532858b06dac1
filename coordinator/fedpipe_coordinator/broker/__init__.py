"""The managed Mosquitto: its configuration, its process and its port."""
