"""Codecs: states to bytes and back; and error feedback for what a lossy one drops."""
