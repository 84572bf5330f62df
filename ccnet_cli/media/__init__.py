"""Images, videos, their names and how they are read and written."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# what is read only
READ_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff")
