"""Why an image file is not decoded.

ImageError
+- BrokenImageError       not an image, or a damaged one
+- UnsupportedImageError  an image of a kind that is not decoded
+- ImageTooLargeError     too many pixels, or parts that take too long to read

`MemoryError` is none of them: that is the process's failure, not the file's.
"""

from __future__ import annotations


class ImageError(ValueError):
    """The file is rejected. The message names the reason in one line, and quotes nothing of the file but numbers."""


class BrokenImageError(ImageError):
    pass


class UnsupportedImageError(ImageError):
    pass


class ImageTooLargeError(ImageError):
    pass
