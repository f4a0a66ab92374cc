"""Other libraries: each module here speaks to one of them, and imports it only when it is used."""
