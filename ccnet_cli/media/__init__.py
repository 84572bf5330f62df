"""Images, videos, their names and how they are read and written."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# what is read only
READ_SUFFIXES = (*IMAGE_SUFFIXES, ".tif", ".tiff")
# what label maps may be besides; which of these files change values, their bytes say
LABEL_SUFFIXES = (*READ_SUFFIXES, ".gif")
