"""What is learnt from a row: row → tokens → loss → metrics, a class for each kind of data."""
