"""Self-supervised pretraining on bulk gene expression."""
from importlib.metadata import version

__version__ = version("ssl-expr")
