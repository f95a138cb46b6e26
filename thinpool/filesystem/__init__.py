"""File systems on layers: made, grown, mounted; the mount table."""
