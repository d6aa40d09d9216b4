"""Rows of files: formats, encodings, layouts, folders of data sets."""
