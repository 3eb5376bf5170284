"""What a measurement is, how certain it is, and on which machine it was made."""
