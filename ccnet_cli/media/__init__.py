"""Images, videos, their names and how they are read and written."""
