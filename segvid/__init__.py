"""segvid: attention mechanisms for segmentation and video recognition, trained, compared and exported alike."""

__version__ = "0.1.0"
