"""Transport of pages to the image: into a local directory or over a network connection."""
