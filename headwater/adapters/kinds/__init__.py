"""Kinds of adapters, a file each: :mod:`.kind` says what a kind is, :mod:`.table` finds one."""
