"""Adapters for other runtimes: what each does with one, and folders and files that it reads rightly."""
