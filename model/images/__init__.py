"""Image files, decoded to upright 8-bit RGB: for serving, training and evaluation alike."""
