"""Towers as files: a bundle for the server, ONNX for a device."""
