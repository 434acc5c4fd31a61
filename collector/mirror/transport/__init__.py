"""The way of pages to the image: a local directory or a network connection."""
