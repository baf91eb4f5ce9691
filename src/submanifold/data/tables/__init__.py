"""Tables: columns of any kind as standardized vectors, and back."""

from submanifold.data.tables.preprocessor import Preprocessor

__all__ = ["Preprocessor"]
