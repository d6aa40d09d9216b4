"""Receipts: a signed, chained record of what each round took and gave, to be checked without the server."""
