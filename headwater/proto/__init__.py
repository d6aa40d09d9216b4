"""Wire messages: the .proto, its generated code, and the conversion to and from ``protocol`` data."""
