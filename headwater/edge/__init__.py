"""An edge aggregator: to its clients a server, to the server one client that answers with a sum."""
