"""The hotindex gateway: a WebSocket and HTTP server around a live vector index."""

from importlib.metadata import version

__version__ = version("hotindex")
