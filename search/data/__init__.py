"""Data sets: train and validation splits for the search, test splits for the final rerank."""

from normact.search.data.base import Data, Split, Splits, TensorData
from normact.search.data.digits import Digits
from normact.search.data.fashion_mnist import FashionMnist

__all__ = ["Data", "Digits", "FashionMnist", "Split", "Splits", "TensorData"]
